//! The definitions of the kinds: plain for `kubectl apply`, and as templates of the chart.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::{File, Generate, HEADER, escape_template};

/// Two files for each kind.
pub(super) fn files() -> Result<Vec<File>, Generate> {
    let mut files = Vec::new();
    for definition in crate::api::crds() {
        let name = format!("{}.yaml", definition.spec.names.plural);
        let plain = format!("{HEADER}{}", yaml(&definition)?);
        let template = template(definition)?;
        files.push((format!("crds/{name}").into(), plain));
        files.push((format!("charts/portcullis/templates/crds/{name}").into(), template));
    }
    Ok(files)
}

/// As a template: left out when the chart's values say so, and never deleted with the release, since the objects
/// of every user would go with it.
fn template(mut definition: CustomResourceDefinition) -> Result<String, Generate> {
    let keep = ("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    definition.metadata.annotations.get_or_insert_default().extend([keep]);
    let text = escape_template(&yaml(&definition)?);
    Ok(format!("{HEADER}{{{{- if .Values.crds.install }}}}\n{text}{{{{- end }}}}\n"))
}

fn yaml(definition: &CustomResourceDefinition) -> Result<String, Generate> {
    let name = || definition.metadata.name.clone().unwrap_or_default();
    let mut text =
        serde_saphyr::to_string(definition).map_err(|source| Generate::Serialize { name: name(), source })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}
