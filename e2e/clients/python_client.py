"""A real MCP client for the end-to-end tests: the Python package `mcp`.

    python_client.py URL auto|legacy|sse list
    python_client.py URL auto|legacy|sse call TOOL JSON

The key is in PORTCULLIS_KEY and the CA's file in PORTCULLIS_CA. Prints one JSON object; "error" in it is
a refusal by HTTP or by the protocol.
"""

import asyncio
import json
import os
import ssl
import sys
from contextlib import asynccontextmanager

import httpx2
from mcp import Client, ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

URL, MODE, COMMAND, *REST = sys.argv[1:]
HEADERS = {"Authorization": f"Bearer {os.environ['PORTCULLIS_KEY']}"} if os.environ.get("PORTCULLIS_KEY") else {}
TLS = ssl.create_default_context(cafile=os.environ["PORTCULLIS_CA"])


def http_client(headers=None, timeout=None, auth=None, **_):
    """What the SSE transport asks for; the CA is ours."""
    return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth, verify=TLS, follow_redirects=True)


@asynccontextmanager
async def connected():
    if MODE == "sse":
        async with sse_client(URL + "/sse", headers=HEADERS, httpx_client_factory=http_client) as (read, write):
            async with ClientSession(read, write) as session:
                await session.initialize()
                yield session
        return
    async with httpx2.AsyncClient(headers=HEADERS, verify=TLS, timeout=30) as http:
        async with Client(streamable_http_client(URL + "/mcp", http_client=http), mode=MODE) as client:
            yield client


async def run():
    async with connected() as client:
        if COMMAND == "list":
            listed = await client.list_tools()
            return {"tools": [tool.name for tool in listed.tools]}
        tool, arguments = REST
        result = await client.call_tool(tool, json.loads(arguments))
        data = result.model_dump(by_alias=True, mode="json")
        texts = [block.get("text", "") for block in data.get("content", [])]
        return {
            "isError": bool(data.get("isError")),
            "text": "\n".join(texts),
            "structured": data.get("structuredContent"),
        }


def root_cause(error):
    """The first plain error inside the groups that task groups wrap around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


try:
    print(json.dumps(asyncio.run(run())))
except BaseException as error:  # Whatever it is, the test wants to see it.
    cause = root_cause(error)
    print(json.dumps({"error": f"{type(cause).__name__}: {cause}"}))
