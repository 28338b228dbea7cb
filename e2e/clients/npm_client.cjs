// A real MCP client for the end-to-end tests: the npm package @modelcontextprotocol/sdk.
//
//   node npm_client.cjs URL http|sse list
//   node npm_client.cjs URL http|sse call TOOL JSON
//
// The key is in PORTCULLIS_KEY, the CA in NODE_EXTRA_CA_CERTS. Prints one JSON object; "error" in it is a
// refusal by HTTP or by the protocol. CommonJS, because only that looks into NODE_PATH.
const { Client } = require('@modelcontextprotocol/sdk/client/index.js');
const { SSEClientTransport } = require('@modelcontextprotocol/sdk/client/sse.js');
const { StreamableHTTPClientTransport } = require('@modelcontextprotocol/sdk/client/streamableHttp.js');

const [url, mode, command, ...rest] = process.argv.slice(2);
const key = process.env.PORTCULLIS_KEY;
const requestInit = { headers: key ? { Authorization: `Bearer ${key}` } : {} };

async function run() {
  const transport =
    mode === 'sse'
      ? new SSEClientTransport(new URL(url + '/sse'), { requestInit })
      : new StreamableHTTPClientTransport(new URL(url + '/mcp'), { requestInit });
  const client = new Client({ name: 'portcullis-e2e', version: '1' });
  await client.connect(transport);
  try {
    if (command === 'list') {
      const { tools } = await client.listTools();
      return { tools: tools.map((tool) => tool.name) };
    }
    const [name, json] = rest;
    const result = await client.callTool({ name, arguments: JSON.parse(json) });
    return {
      isError: Boolean(result.isError),
      text: (result.content ?? []).map((block) => block.text ?? '').join('\n'),
      structured: result.structuredContent ?? null,
    };
  } finally {
    await client.close();
  }
}

run().then(
  (answer) => console.log(JSON.stringify(answer)),
  (error) => console.log(JSON.stringify({ error: `${error.code ?? ''} ${error.message}` })),
);
