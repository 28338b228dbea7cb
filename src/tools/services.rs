//! Services.

use serde_json::Value;

use super::list::{self, Listed, Listing};
use super::table::{Column, object_age};
use super::{Needs, Tool, args, output_schema};
use crate::authz::{Object, Permission};

pub(super) const LIST: Tool = Tool {
    name: "services_list",
    aliases: &["kubernetes_list_services", "k8s_list_services", "list_services"],
    title: "List Services",
    description: "Lists Kubernetes Services with their type, addresses and ports, in one namespace or in every \
                  namespace you have access to.",
    needs: Needs::Permission(Permission::of("services", "list")),
    idempotent: true,
    input_schema: || args::schema(&list::ARGUMENTS),
    output_schema: output_schema::<Listed>,
    parse: |given| list::parse(&SERVICES, &given),
};

static SERVICES: Listing = Listing {
    object: Object::of("services"),
    columns: &[
        Column { name: "Type", value: |object| text(&object["spec"]["type"]) },
        Column { name: "Cluster-IP", value: |object| text(&object["spec"]["clusterIP"]) },
        Column { name: "Port(s)", value: ports },
        Column { name: "Age", value: object_age },
    ],
};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("<none>").to_owned()
}

fn ports(object: &Value) -> String {
    let ports = object["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let port = |port: &Value| format!("{}/{}", port["port"], port["protocol"].as_str().unwrap_or("TCP"));
    if ports.is_empty() { "<none>".to_owned() } else { ports.iter().map(port).collect::<Vec<_>>().join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_made_here_show_type_address_and_ports() {
        let service = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": [
            {"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        let cells: Vec<String> =
            SERVICES.columns[..3].iter().map(|column| (column.value)(&service)).collect();
        assert_eq!(cells, ["ClusterIP", "10.0.0.1", "80/TCP,53/UDP"]);
    }
}
