//! Events, newest first.
//!
//! The API server lists Events by name, not by time, so all that match are read, page by page, and the newest are kept:
//! memory is bounded by the limit of the call, time by the number of Events that are looked at.

use std::cmp::Reverse;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::Resource;
use kube::core::Request;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::args::{self, Argument, Arguments, Kind};
use super::errors::Call;
use super::list::{self, CONTINUE, FIELD_SELECTOR, LABEL_SELECTOR, LIMIT, NAMESPACE, Query, Step};
use super::table::{age, plain, render};
use super::{
    Context, InvalidArguments, Invocation, Needs, Output, Parsed, Tool, ToolError, output, output_schema,
    request,
};
use crate::authz::{Permission, Permit, Target};

/// Events of one request.
const PAGE: u32 = 500;

/// Events that one call looks at, at most. A cluster keeps them for an hour.
const MAX_EVENTS: usize = 20_000;

/// Namespaces that are read at the same time.
const CONCURRENCY: usize = 4;

/// Most characters of a message: five hundred Events must fit into one answer, as text and as data.
const MAX_MESSAGE: usize = 512;

const OBJECT_KIND: Argument = Argument::optional(
    "kind",
    Kind::Type,
    "Only Events about objects of this kind, such as \"Pod\" or \"Deployment\".",
);
const OBJECT_NAME: Argument =
    Argument::optional("name", Kind::Name, "Only Events about objects of this name.");

static ARGUMENTS: [Argument; 7] =
    [NAMESPACE, OBJECT_KIND, OBJECT_NAME, LABEL_SELECTOR, FIELD_SELECTOR, LIMIT, CONTINUE];

pub(super) const LIST: Tool = Tool {
    name: "events_list",
    aliases: &["kubernetes_list_events", "k8s_list_events", "list_events"],
    title: "List Events",
    description: "Lists Kubernetes Events, newest first: what happened lately to Pods and other objects, and why. In one \
                  namespace or in every namespace you have access to; with \"kind\" and \"name\" those of one object; \
                  with the fieldSelector \"type=Warning\" only problems.",
    needs: Needs::Permission(Permission::of("events", "list")),
    idempotent: true,
    input_schema: || args::schema(&ARGUMENTS),
    output_schema: output_schema::<Listed>,
    parse: |given| parse(&given),
};

/// Events of one page, newest first.
#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    /// The Events.
    items: Vec<Item>,
    /// Give it as the argument "continue" to get older ones; absent on the last page.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// How many older ones follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<i64>,
    /// Namespaces that could not be read, so that the list is not complete.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<String>,
    /// Whether there were too many Events to look at all, so that newer ones may be missing.
    incomplete: bool,
}

/// An Event.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Item {
    /// Namespace of the Event.
    namespace: String,
    /// When it happened last.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<String>,
    /// Normal or Warning.
    #[serde(rename = "type")]
    type_: String,
    /// Why, in a word.
    reason: String,
    /// The object that it is about: `Pod/web-1`.
    object: String,
    /// How often it happened.
    count: i32,
    /// What happened, in words.
    message: String,
}

/// What Events are sorted by; no two are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    last_seen: Option<Timestamp>,
    namespace: String,
    name: String,
}

#[derive(Debug, PartialEq)]
struct List {
    query: Query,
    /// The last Event of the page before.
    after: Option<Position>,
}

fn parse(given: &Map<String, Value>) -> Parsed {
    Ok(Box::new(List::parse(given)?))
}

impl List {
    fn parse(given: &Map<String, Value>) -> Result<Self, InvalidArguments> {
        let mut arguments = Arguments::check(given, &ARGUMENTS)?;
        let after = arguments.text(CONTINUE.name).map(|text| list::decode(&text)).transpose()?;
        let mut query = Query::take(&mut arguments);
        let object = [
            query.field_selector.take(),
            arguments.text(OBJECT_KIND.name).map(|kind| format!("involvedObject.kind={kind}")),
            arguments.text(OBJECT_NAME.name).map(|name| format!("involvedObject.name={name}")),
        ];
        let selectors: Vec<String> = object.into_iter().flatten().collect();
        query.field_selector = Some(selectors.join(",")).filter(|selector| !selector.is_empty());
        Ok(Self { query, after })
    }
}

impl Invocation for List {
    fn target(&self) -> Target<'_> {
        self.query.target()
    }

    fn resource(&self) -> String {
        "events".to_owned()
    }

    fn run(
        self: Box<Self>,
        context: Context,
        permit: Permit,
    ) -> BoxFuture<'static, Result<Output, ToolError>> {
        async move {
            let steps = list::plan(&permit, self.query.namespace.as_deref(), &context.namespaces, None)?;
            let newest = self.read(&context.client, &steps).await?;
            newest.answer(self.query.namespace.is_none(), Timestamp::now())
        }
        .boxed()
    }
}

/// A page of Events as the API server answers it.
#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    items: Vec<Event>,
}

#[derive(Deserialize)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    token: String,
}

impl List {
    /// Reads every page of every step, some steps at the same time, until there are too many.
    async fn read(&self, client: &kube::Client, steps: &[Step]) -> Result<Newest, ToolError> {
        let mut newest = Newest::new(self.query.limit as usize, self.after.clone());
        let first = futures::stream::iter(steps.to_vec()).map(|step| self.page(client, step));
        let mut pages = std::pin::pin!(first.buffered(CONCURRENCY));
        let mut refused = None;
        for step in steps {
            if newest.seen >= MAX_EVENTS {
                newest.incomplete = true;
                return Ok(newest);
            }
            let mut page = pages.next().await.expect("one answer per step");
            if let (Err(ToolError::Forbidden(text)), Some(namespace), true) =
                (&page, &step.namespace, steps.len() > 1)
            {
                refused = Some(text.clone());
                newest.skipped.push(namespace.clone());
                continue;
            }
            loop {
                let Page { metadata, items } = page?;
                items.into_iter().for_each(|event| newest.add(event));
                if metadata.token.is_empty() {
                    break;
                }
                if newest.seen >= MAX_EVENTS {
                    newest.incomplete = true;
                    return Ok(newest);
                }
                let next = Step { namespace: step.namespace.clone(), token: Some(metadata.token) };
                page = self.page(client, next).await;
            }
        }
        match refused.filter(|_| newest.skipped.len() == steps.len()) {
            Some(text) => Err(ToolError::Forbidden(text)),
            None => Ok(newest),
        }
    }

    async fn page(&self, client: &kube::Client, step: Step) -> Result<Page, ToolError> {
        let call = Call {
            verb: "list",
            kind: "Event",
            resource: "events",
            namespace: step.namespace.clone(),
            name: None,
        };
        let events = Request::new(Event::url_path(&(), step.namespace.as_deref()));
        let list = events.list(&self.query.params(PAGE, step.token));
        request::object(client, &call, list).await
    }
}

/// The newest of many Events, in at most four times the memory of those that are kept.
#[derive(Debug, Default)]
struct Newest {
    limit: usize,
    after: Option<Position>,
    kept: Vec<(Position, Item)>,
    /// Events that were looked at.
    seen: usize,
    /// Those of them that belong to this page or a later one.
    matching: usize,
    skipped: Vec<String>,
    incomplete: bool,
}

impl Newest {
    fn new(limit: usize, after: Option<Position>) -> Self {
        Self { limit, after, ..Self::default() }
    }

    fn add(&mut self, event: Event) {
        self.seen += 1;
        let position = position(&event);
        if self.after.as_ref().is_some_and(|after| position >= *after) {
            return;
        }
        self.matching += 1;
        self.kept.push((position, item(event)));
        if self.kept.len() >= 4 * self.limit {
            self.trim();
        }
    }

    fn trim(&mut self) {
        self.kept.sort_unstable_by(|(a, _), (b, _)| Reverse(a).cmp(&Reverse(b)));
        self.kept.truncate(self.limit);
    }

    fn answer(mut self, with_namespace: bool, now: Timestamp) -> Result<Output, ToolError> {
        self.trim();
        let remaining = i64::try_from(self.matching - self.kept.len()).ok().filter(|count| *count > 0);
        let last = self.kept.last().filter(|_| remaining.is_some());
        let next = last.map(|(position, _)| list::encode(position));
        let mut text = match self.kept.is_empty() {
            true => "No events here.\n".to_owned(),
            false => as_text(&self.kept, with_namespace, now),
        };
        list::push_notes(&mut text, next.as_deref(), remaining, &self.skipped);
        if self.incomplete {
            text.push_str(&format!(
                "Only {} events were looked at, newer ones may be missing: give a namespace, or \"kind\" and \
                 \"name\" of an object\n",
                self.seen
            ));
        }
        let items = self.kept.into_iter().map(|(_, item)| item).collect();
        let Self { skipped, incomplete, .. } = self;
        output(text, &Listed { items, next, remaining, skipped, incomplete })
    }
}

fn position(event: &Event) -> Position {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let last_seen = series
        .map(|time| time.0)
        .or_else(|| event.last_timestamp.as_ref().map(|time| time.0))
        .or_else(|| event.event_time.as_ref().map(|time| time.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0));
    Position {
        last_seen,
        namespace: event.metadata.namespace.clone().unwrap_or_default(),
        name: event.metadata.name.clone().unwrap_or_default(),
    }
}

fn item(event: Event) -> Item {
    let last_seen = position(&event).last_seen;
    let count = event.series.and_then(|series| series.count).or(event.count).unwrap_or(1);
    let object = event.involved_object;
    Item {
        namespace: event.metadata.namespace.unwrap_or_default(),
        last_seen: last_seen.map(|time| time.to_string()),
        type_: event.type_.unwrap_or_default(),
        reason: event.reason.unwrap_or_default(),
        object: format!("{}/{}", object.kind.unwrap_or_default(), object.name.unwrap_or_default()),
        count,
        message: plain(event.message.unwrap_or_default().trim_end(), MAX_MESSAGE),
    }
}

fn as_text(kept: &[(Position, Item)], with_namespace: bool, now: Timestamp) -> String {
    let mut headers = vec!["Last seen", "Type", "Reason", "Object", "Count", "Message"];
    if with_namespace {
        headers.insert(0, "Namespace");
    }
    let row = |(position, item): &(Position, Item)| {
        let last_seen = position.last_seen.map_or_else(|| "<unknown>".to_owned(), |time| age(time, now));
        let cells = [
            last_seen,
            plain(&item.type_, MAX_MESSAGE),
            plain(&item.reason, MAX_MESSAGE),
            plain(&item.object, MAX_MESSAGE),
            item.count.to_string(),
            item.message.clone(),
        ];
        with_namespace.then(|| item.namespace.clone()).into_iter().chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = kept.iter().map(row).collect();
    render(&headers.into_iter().map(str::to_owned).collect::<Vec<_>>(), &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, last: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop"},
            "involvedObject": {"kind": "Pod", "name": "web-1"},
            "type": "Warning", "reason": "BackOff", "message": "Back-off\nrestarting\n", "count": 7,
            "lastTimestamp": last,
        }))
        .expect("an Event")
    }

    fn page(events: &[Event], limit: usize, after: Option<Position>) -> Output {
        let mut newest = Newest::new(limit, after);
        events.iter().cloned().for_each(|event| newest.add(event));
        newest.answer(false, "2026-01-01T01:00:00Z".parse().unwrap()).expect("an answer")
    }

    #[test]
    fn events_come_newest_first() {
        let events = [event("b", "2026-01-01T00:00:00Z"), event("a", "2026-01-01T00:58:00Z")];
        assert_eq!(
            page(&events, 10, None).text,
            "LAST SEEN  TYPE     REASON   OBJECT     COUNT  MESSAGE\n\
             2m         Warning  BackOff  Pod/web-1  7      Back-off restarting\n\
             60m        Warning  BackOff  Pod/web-1  7      Back-off restarting\n"
        );
    }

    #[test]
    fn pages_of_events_hold_each_one_once() {
        let events: Vec<Event> = (0..25)
            .map(|at| event(&format!("e{:02}", (at * 7) % 25), &format!("2026-01-01T00:{:02}:00Z", at % 9)))
            .collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let output = page(&events, 4, after);
            for item in output.structured["items"].as_array().unwrap() {
                seen.push(item["lastSeen"].as_str().unwrap().to_owned());
            }
            match output.structured["continue"].as_str() {
                Some(next) => after = Some(list::decode(next).expect("our own")),
                None => break,
            }
        }
        assert_eq!(seen.len(), 25);
        assert!(seen.is_sorted_by(|a, b| a >= b), "{seen:?}");
    }

    #[test]
    fn the_events_of_one_object_are_selected_by_the_api_server() {
        let parse =
            |given: Value| List::parse(given.as_object().unwrap()).map(|list| list.query.field_selector);
        assert_eq!(
            parse(json!({"kind": "Pod", "name": "web-1", "fieldSelector": "type=Warning"})),
            Ok(Some("type=Warning,involvedObject.kind=Pod,involvedObject.name=web-1".into()))
        );
        assert_eq!(parse(json!({})), Ok(None));
        assert!(parse(json!({"kind": "Pod,type=Normal"})).is_err());
        assert!(parse(json!({"continue": "damaged"})).is_err());
    }

    #[test]
    fn the_newest_time_that_an_event_knows_counts() {
        let event: Event = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "involvedObject": {}, "eventTime": "2026-01-01T00:01:00.000000Z",
            "series": {"count": 3, "lastObservedTime": "2026-01-01T00:02:00.000000Z"},
        }))
        .expect("an Event");
        let item = item(event);
        assert_eq!((item.last_seen.as_deref(), item.count), (Some("2026-01-01T00:02:00Z"), 3));
    }
}
