//! Lists over one namespace, over all of them, or over those that a permit covers.
//!
//! A list without a namespace is one request if the permit covers the whole cluster, else one per covered namespace: a
//! few at a time, in the order of their names, until the page is full. The cursor says where the next page begins; it
//! is no secret and grants nothing, since the permit decides again for each page.

use std::future::Future;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kube::core::Request;
use kube::core::params::ListParams;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::args::{Argument, Arguments, Kind, is_label};
use super::errors::Call;
use super::table::{self, Column, Page, Row};
use super::{Context, InvalidArguments, Invocation, Output, Parsed, ToolError, output, request};
use crate::authz::catalogue::Place;
use crate::authz::{Object, Permit, Target};

/// Namespaces that one call looks into, at most; the cursor goes on with the others.
const MAX_NAMESPACES: usize = 256;

/// Namespaces that are looked into at the same time.
const CONCURRENCY: usize = 4;

pub(super) const NAMESPACE: Argument = Argument::optional(
    "namespace",
    Kind::Label,
    "Namespace to list. Leave it out for every namespace you have access to.",
);
pub(super) const LABEL_SELECTOR: Argument = Argument::optional(
    "labelSelector",
    Kind::Text(1_000),
    "Only objects with these labels, in the syntax of Kubernetes: \"app=web,tier!=cache\".",
);
pub(super) const FIELD_SELECTOR: Argument = Argument::optional(
    "fieldSelector",
    Kind::Text(1_000),
    "Only objects with these fields, in the syntax of Kubernetes: \"status.phase=Running\".",
);
pub(super) const LIMIT: Argument = Argument::optional(
    "limit",
    Kind::Integer { min: 1, max: 500, default: Some(100) },
    "Most objects to answer with.",
);
pub(super) const CONTINUE: Argument = Argument::optional(
    "continue",
    Kind::Text(4_096),
    "Next page: the value of \"continue\" in the answer before, with all other arguments unchanged.",
);

/// Arguments of every list.
pub(super) static ARGUMENTS: [Argument; 5] = [NAMESPACE, LABEL_SELECTOR, FIELD_SELECTOR, LIMIT, CONTINUE];

/// Objects that can be listed as a table.
#[derive(Clone, Copy)]
pub(super) struct Listing {
    /// Which ones.
    pub(super) object: &'static Object,
    /// Columns where the API server makes none.
    pub(super) columns: &'static [Column],
}

/// A list that was asked for.
struct List {
    listing: Listing,
    query: Query,
}

/// What a list is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Query {
    /// One namespace, or every one that is permitted.
    pub(super) namespace: Option<String>,
    /// Labels that must match.
    pub(super) label_selector: Option<String>,
    /// Fields that must match.
    pub(super) field_selector: Option<String>,
    /// Most objects of the page.
    pub(super) limit: u32,
}

impl Query {
    /// Takes the arguments that every list has but the cursor.
    pub(super) fn take(arguments: &mut Arguments) -> Self {
        Self {
            namespace: arguments.text(NAMESPACE.name),
            label_selector: arguments.text(LABEL_SELECTOR.name),
            field_selector: arguments.text(FIELD_SELECTOR.name),
            limit: arguments.count(LIMIT.name).expect("the table has a default"),
        }
    }

    /// What the list acts on.
    pub(super) fn target(&self) -> Target<'_> {
        match &self.namespace {
            Some(namespace) => Target::Namespace(namespace),
            None => Target::Anywhere,
        }
    }

    /// Parameters of one request.
    pub(super) fn params(&self, limit: u32, token: Option<String>) -> ListParams {
        ListParams {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            limit: Some(limit),
            continue_token: token,
            ..ListParams::default()
        }
    }
}

/// Parses the arguments of a list.
///
/// # Errors
/// [`InvalidArguments`] names the argument at fault.
pub(super) fn parse(listing: &'static Listing, given: &Map<String, Value>) -> Parsed {
    let mut arguments = Arguments::check(given, &ARGUMENTS)?;
    let cursor = arguments.text(CONTINUE.name);
    let query = Query::take(&mut arguments);
    Ok(Box::new(Paged::new(*listing, query, cursor)?))
}

/// A list and where its page begins.
pub(super) struct Paged {
    list: List,
    cursor: Option<Cursor>,
}

impl Paged {
    /// A page of a list that begins where the cursor says.
    ///
    /// # Errors
    /// The cursor is none of this list.
    pub(super) fn new(
        listing: Listing,
        query: Query,
        cursor: Option<String>,
    ) -> Result<Self, InvalidArguments> {
        let cursor = cursor.map(|text| Cursor::decode(&text, listing.object.name)).transpose()?;
        if let (Some(cursor), Some(namespace)) = (&cursor, &query.namespace)
            && cursor.namespace.as_ref() != Some(namespace)
        {
            return Err(damaged());
        }
        Ok(Self { list: List { listing, query }, cursor })
    }
}

impl Invocation for Paged {
    fn target(&self) -> Target<'_> {
        self.list.query.target()
    }

    fn resource(&self) -> String {
        self.list.listing.object.name.to_owned()
    }

    fn run(
        self: Box<Self>,
        context: Context,
        permit: Permit,
    ) -> BoxFuture<'static, Result<Output, ToolError>> {
        async move {
            let Paged { list, cursor } = *self;
            let steps = plan(&permit, list.query.namespace.as_deref(), &context.namespaces, cursor.as_ref())?;
            let list = Arc::new(list);
            let limit = list.query.limit;
            let fetch = |step: Step, limit: u32| list.clone().page(context.client.clone(), step, limit);
            let found = collect(list.listing.object.name, &steps, limit, fetch).await?;
            list.answer(found)
        }
        .boxed()
    }
}

impl List {
    async fn page(self: Arc<Self>, client: kube::Client, step: Step, limit: u32) -> Result<Page, ToolError> {
        let call = Call {
            verb: "list",
            kind: self.listing.object.kind,
            resource: self.listing.object.qualified,
            namespace: step.namespace.clone(),
            name: None,
        };
        let path = self.listing.object.path(step.namespace.as_deref());
        let mut request = Request::new(path).list(&self.query.params(limit, step.token));
        if let Ok(request) = &mut request {
            let accept = http::HeaderValue::from_static(table::ACCEPT);
            request.headers_mut().insert(http::header::ACCEPT, accept);
        }
        let answer = request::bytes(&client, &call, request).await?;
        table::read(&answer, self.listing.columns).map_err(|_| call.unreadable())
    }

    fn answer(&self, found: Found) -> Result<Output, ToolError> {
        let one = self.query.namespace.as_deref();
        let Object { name: plural, place, .. } = self.listing.object;
        let next = found.next.map(|cursor| cursor.encode());
        let mut text = match (found.rows.is_empty(), one) {
            (true, Some(namespace)) => format!("No {plural} in namespace {namespace:?}.\n"),
            (true, None) => format!("No {plural} here.\n"),
            (false, _) => {
                let spread = one.is_none() && *place == Place::Namespaces;
                rows_as_text(&found.columns, &found.rows, spread)
            }
        };
        push_notes(&mut text, next.as_deref(), found.remaining, &found.skipped);
        let keys: Vec<String> = found.columns.iter().map(|column| table::key(column)).collect();
        let item = |row: Row| Item {
            namespace: row.namespace,
            name: row.name,
            columns: table::columns_by_key(&keys, row.cells),
        };
        let items = found.rows.into_iter().map(item).collect();
        output(text, &Listed { items, next, remaining: found.remaining, skipped: found.skipped })
    }
}

fn rows_as_text(columns: &[String], rows: &[Row], with_namespace: bool) -> String {
    let mut headers = vec!["Name".to_owned()];
    headers.extend_from_slice(columns);
    if with_namespace {
        headers.insert(0, "Namespace".to_owned());
    }
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let namespace = with_namespace.then(|| row.namespace.clone().unwrap_or_default());
            let cells = row.cells.iter().map(table::text);
            namespace.into_iter().chain([row.name.clone()]).chain(cells).collect()
        })
        .collect();
    table::render(&headers, &rows)
}

/// Says under a table what is not in it.
pub(super) fn push_notes(text: &mut String, next: Option<&str>, remaining: Option<i64>, skipped: &[String]) {
    if let Some(next) = next {
        let how_many = remaining.map(|remaining| format!(" ({remaining})")).unwrap_or_default();
        text.push_str(&format!("More{how_many}: call again with \"continue\": {next:?}\n"));
    }
    if !skipped.is_empty() {
        let shown = skipped.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        let more = if skipped.len() > 10 { ", ..." } else { "" };
        text.push_str(&format!(
            "Namespaces left out, {} in all, because the endpoint's ServiceAccount cannot read them yet: {shown}{more}\n",
            skipped.len()
        ));
    }
}

/// A page of a list.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Listed {
    /// The objects.
    items: Vec<Item>,
    /// Give it as the argument "continue" to get the next page; absent on the last one.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// How many objects follow this page, where the API server knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<i64>,
    /// Namespaces that could not be read, so that the list is not complete.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<String>,
}

/// An object of a list, with the columns of its table.
#[derive(Debug, Serialize, JsonSchema)]
struct Item {
    /// Namespace of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// Name of the object.
    name: String,
    /// The columns that `kubectl get` shows, in camel case.
    #[serde(flatten)]
    columns: Map<String, Value>,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// The resource, so that a cursor of one list is refused by another.
    resource: String,
    /// The namespace to go on with; none in a list of the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// The API server's token; none at the beginning of a namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Cursor {
    fn encode(&self) -> String {
        encode(self)
    }

    fn decode(text: &str, resource: &str) -> Result<Self, InvalidArguments> {
        let cursor: Self = decode(text)?;
        let sound = cursor.resource == resource
            && cursor.namespace.as_deref().is_none_or(is_label)
            && (cursor.namespace.is_some() || cursor.token.is_some());
        if sound { Ok(cursor) } else { Err(damaged()) }
    }
}

/// Writes a cursor as opaque text.
pub(super) fn encode(cursor: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(cursor).expect("a cursor is plain data"))
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// The text is none of ours.
pub(super) fn decode<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, InvalidArguments> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| damaged())?;
    serde_json::from_slice(&bytes).map_err(|_| damaged())
}

/// A cursor that was changed, or belongs to another list.
pub(super) fn damaged() -> InvalidArguments {
    InvalidArguments(
        "argument \"continue\" is not one of this list: copy it whole from the answer before, with the other \
         arguments unchanged, or start again without it"
            .into(),
    )
}

/// One request of a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    /// One namespace, or all of them.
    pub(super) namespace: Option<String>,
    /// Where to go on inside it.
    pub(super) token: Option<String>,
}

/// The requests that make up a list, in order.
///
/// # Errors
/// The cursor belongs to a list of another kind, or the permit is not for the namespace.
pub(super) fn plan(
    permit: &Permit,
    namespace: Option<&str>,
    namespaces: &[String],
    cursor: Option<&Cursor>,
) -> Result<Vec<Step>, ToolError> {
    let token = cursor.and_then(|cursor| cursor.token.clone());
    if let Some(namespace) = namespace {
        if !permit.covers(namespace) {
            return Err(ToolError::Forbidden(format!("namespace {namespace:?} is not permitted")));
        }
        return Ok(vec![Step { namespace: Some(namespace.to_owned()), token }]);
    }
    let begin = cursor.map(|cursor| cursor.namespace.as_deref());
    match (permit.is_cluster_wide(), begin) {
        (true, None | Some(None)) => Ok(vec![Step { namespace: None, token }]),
        // Rights grew or shrank between two pages, so that one list became another.
        (true, Some(Some(_))) | (false, Some(None)) => Err(ToolError::Invalid(damaged().0)),
        (false, begin) => {
            let begin = begin.flatten().unwrap_or_default();
            let covered = namespaces.iter().filter(|name| name.as_str() >= begin && permit.covers(name));
            let step = |name: &String| Step {
                namespace: Some(name.clone()),
                token: token.clone().filter(|_| name == begin),
            };
            Ok(covered.map(step).collect())
        }
    }
}

/// What a list found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    columns: Vec<String>,
    rows: Vec<Row>,
    next: Option<Cursor>,
    remaining: Option<i64>,
    skipped: Vec<String>,
}

/// Goes through the steps until the page is full.
///
/// Some namespaces are asked ahead, each for a whole page. One whose answer does not fit any more is asked again for
/// what does, since the API server's token only fits the end of its own answer.
async fn collect<F, Answer>(resource: &str, steps: &[Step], limit: u32, fetch: F) -> Result<Found, ToolError>
where
    F: Fn(Step, u32) -> Answer,
    Answer: Future<Output = Result<Page, ToolError>>,
{
    let cursor = |namespace: &Option<String>, token| {
        Some(Cursor { resource: resource.to_owned(), namespace: namespace.clone(), token })
    };
    let mut found = Found::default();
    let mut refused = None;
    let asked = steps.len().min(MAX_NAMESPACES);
    let ahead = futures::stream::iter(steps[..asked].to_vec()).map(|step| fetch(step, limit));
    let mut answers = std::pin::pin!(ahead.buffered(CONCURRENCY));
    for (at, step) in steps[..asked].iter().enumerate() {
        let mut answer = answers.next().await.expect("one answer per step");
        let room = limit as usize - found.rows.len();
        if answer.as_ref().is_ok_and(|page| page.rows.len() > room) {
            answer = fetch(step.clone(), u32::try_from(room).unwrap_or(limit)).await;
        }
        let page = match (answer, &step.namespace) {
            (Ok(page), _) => page,
            // The binding of a namespace that has just appeared takes a moment; the others are not held back.
            (Err(ToolError::Forbidden(text)), Some(namespace)) if steps.len() > 1 => {
                found.skipped.push(namespace.clone());
                refused = Some(text);
                continue;
            }
            (Err(error), _) => return Err(error),
        };
        found.append(page.columns, page.rows)?;
        if page.token.is_some() {
            found.next = cursor(&step.namespace, page.token);
            found.remaining = page.remaining.filter(|_| steps.len() == 1);
            return Ok(found);
        }
        if found.rows.len() >= limit as usize {
            found.next = steps.get(at + 1).and_then(|step| cursor(&step.namespace, None));
            return Ok(found);
        }
    }
    if let Some(text) = refused.filter(|_| found.skipped.len() == steps.len()) {
        return Err(ToolError::Forbidden(text));
    }
    found.next = steps.get(asked).and_then(|step| cursor(&step.namespace, None));
    Ok(found)
}

impl Found {
    fn append(&mut self, columns: Vec<String>, rows: Vec<Row>) -> Result<(), ToolError> {
        if self.columns.is_empty() {
            self.columns = columns;
        } else if self.columns != columns {
            let text = "the API servers answer with different columns, as during an upgrade; try again";
            return Err(ToolError::Unavailable(text.into()));
        }
        self.rows.extend(rows);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
