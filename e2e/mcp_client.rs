//! Real MCP clients: the Python package in both eras and over legacy SSE, and the npm SDK.

use std::process::Command;

use serde_json::Value;

use crate::server::Endpoint;

/// One way in which real clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Python `mcp`, current revision, stateless.
    PythonModern,
    /// Python `mcp`, with the handshake of 2025-11-25.
    PythonHandshake,
    /// Python `mcp`, HTTP+SSE of 2024-11-05.
    PythonSse,
    /// npm `@modelcontextprotocol/sdk`, Streamable HTTP.
    NpmHandshake,
    /// npm `@modelcontextprotocol/sdk`, HTTP+SSE.
    NpmSse,
}

impl Client {
    /// Every one.
    pub(crate) const ALL: [Client; 5] = [
        Client::PythonModern,
        Client::PythonHandshake,
        Client::PythonSse,
        Client::NpmHandshake,
        Client::NpmSse,
    ];

    /// Lists the names of the tools.
    pub(crate) fn tools(self, endpoint: &Endpoint, key: &str) -> Result<Vec<String>, String> {
        let answer = self.run(endpoint, key, &["list"])?;
        let names = answer["tools"].as_array().expect("a list of tools");
        Ok(names.iter().map(|name| name.as_str().expect("a name").to_owned()).collect())
    }

    /// Calls a tool. A refusal by the tool is an `Err` like one by the protocol, with its text.
    pub(crate) fn call(
        self,
        endpoint: &Endpoint,
        key: &str,
        tool: &str,
        arguments: &Value,
    ) -> Result<Value, String> {
        let answer = self.run(endpoint, key, &["call", tool, &arguments.to_string()])?;
        if answer["isError"] == true {
            return Err(answer["text"].as_str().unwrap_or_default().to_owned());
        }
        Ok(answer)
    }

    fn run(self, endpoint: &Endpoint, key: &str, arguments: &[&str]) -> Result<Value, String> {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/clients");
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run by `just e2e`"))
        };
        let (program, script, mode) = match self {
            Client::PythonModern => ("PORTCULLIS_E2E_PYTHON", "python_client.py", "auto"),
            Client::PythonHandshake => ("PORTCULLIS_E2E_PYTHON", "python_client.py", "legacy"),
            Client::PythonSse => ("PORTCULLIS_E2E_PYTHON", "python_client.py", "sse"),
            Client::NpmHandshake => ("PORTCULLIS_E2E_NODE", "npm_client.cjs", "http"),
            Client::NpmSse => ("PORTCULLIS_E2E_NODE", "npm_client.cjs", "sse"),
        };
        let output = Command::new(variable(program))
            .arg(format!("{directory}/{script}"))
            .args([&endpoint.url, mode])
            .args(arguments)
            .env("PORTCULLIS_KEY", key)
            .env("PORTCULLIS_CA", &endpoint.ca)
            .env("NODE_EXTRA_CA_CERTS", &endpoint.ca)
            .env("NODE_PATH", std::env::var("PORTCULLIS_E2E_NODE_MODULES").unwrap_or_default())
            .output()
            .expect("the client runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(text.trim()).unwrap_or_else(|error| {
            panic!("{self:?}: {error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
        });
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }
}
