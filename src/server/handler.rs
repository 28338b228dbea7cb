//! The MCP library's view of us: lists and calls, and empty answers for what Portcullis does not have.
//!
//! The driver puts the message's [`Call`] into the request; nothing here decides anything by itself.

use std::sync::Arc;

use rmcp::ServerHandler;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestParams,
    CompleteResult, ContentBlock, ErrorCode, ErrorData, Implementation, ListPromptsResult,
    ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams,
    ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities, ServerConfig, Tool as Description,
};
use rmcp::service::{RequestContext, RoleServer};

use super::call::{self, NoTool};
use super::draft::{Call, Verdict};
use super::request::{Core, bounded};
use crate::mcp::error;

/// Tools on one page of a list.
const PAGE: usize = 100;
const INSTRUCTIONS: &str = "Tools act on a Kubernetes cluster with the rights of your API key. A tool that is not \
    listed is not available to you. A tool error that says \"permission denied\" will not go away by trying again.";

/// Answers the library's requests.
#[derive(Clone)]
pub(super) struct Handler(pub(super) Arc<Core>);

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let server = Implementation::new("portcullis", env!("CARGO_PKG_VERSION")).with_title("Portcullis");
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(server)
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let call = call_of(&context)?;
        let tools = self.0.toolbox.list(&call.caller);
        let page = page(&tools, request.and_then(|request| request.cursor).as_deref())?;
        call.decide(Verdict::success());
        Ok(page)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let call = call_of(&context)?;
        let arguments = request.arguments.unwrap_or_default();
        let outcome = call::run(&self.0, &call, &request.name, arguments, context.ct).await;
        let result = match outcome {
            Ok(Ok(output)) => {
                let mut result = CallToolResult::success(vec![ContentBlock::text(output.text)]);
                result.structured_content = Some(output.structured);
                result
            }
            Ok(Err(text)) => CallToolResult::error(vec![ContentBlock::text(text)]),
            Err(NoTool::Unknown) => {
                let text = format!("unknown tool: {}", bounded(&request.name));
                return Err(ErrorData::invalid_params(text, None));
            }
            Err(NoTool::OutOfScope(needed)) => {
                let data = serde_json::json!({"scope": needed.to_string()});
                let text = format!("insufficient scope: {needed} is needed");
                return Err(ErrorData::new(ErrorCode(error::FORBIDDEN), text, Some(data)));
            }
        };
        Ok(result.into())
    }

    fn get_tool(&self, name: &str) -> Option<Description> {
        self.0.toolbox.describe(name).cloned()
    }

    async fn complete(
        &self,
        _: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        Ok(CompleteResult::default())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::default())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::default())
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::default())
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let data = serde_json::json!({"uri": bounded(&request.uri)});
        Err(ErrorData::resource_not_found("resource not found", Some(data)))
    }
}

/// The message that the driver put in.
fn call_of(context: &RequestContext<RoleServer>) -> Result<Arc<Call>, ErrorData> {
    context
        .extensions
        .get::<http::request::Parts>()
        .and_then(|parts| parts.extensions.get::<Arc<Call>>())
        .cloned()
        .ok_or_else(|| ErrorData::internal_error("the request did not come through the driver", None))
}

/// One page of the tools. A cursor is the name of the last tool of the page before.
fn page(tools: &[Description], cursor: Option<&str>) -> Result<ListToolsResult, ErrorData> {
    let start = match cursor {
        None => 0,
        Some(cursor) => {
            let last = tools.iter().position(|tool| tool.name == cursor);
            last.ok_or_else(|| ErrorData::invalid_params("unknown cursor", None))? + 1
        }
    };
    let end = tools.len().min(start + PAGE);
    let shown = tools.get(start..end).unwrap_or_default();
    // What a caller sees depends on its roles, so nobody else may be shown it.
    let mut result =
        ListToolsResult::with_all_items(shown.to_vec()).with_ttl_ms(0).with_cache_scope(CacheScope::Private);
    result.next_cursor = shown.last().filter(|_| end < tools.len()).map(|tool| tool.name.to_string());
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let tool = |i: usize| Description::new(format!("tool-{i:03}"), "", serde_json::Map::new());
        let tools: Vec<_> = (0..250).map(tool).collect();
        let (mut cursor, mut seen) = (None, Vec::new());
        for size in [100, 100, 50] {
            let page = page(&tools, cursor.as_deref()).expect("a page");
            assert_eq!(page.tools.len(), size);
            seen.extend(page.tools);
            cursor = page.next_cursor;
        }
        assert_eq!((seen, cursor), (tools, None));
        assert!(page(&[], Some("nonsense")).is_err());
    }
}
