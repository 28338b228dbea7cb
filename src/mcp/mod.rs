//! MCP as data: the envelope, method names, error codes and protocol revisions. Pure; the MCP library lives in `server`.
