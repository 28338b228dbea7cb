"""Calls one tool of an MCP server and prints the result as JSON.

The exit status is 0 for an answer, 1 for a tool error and 2 when there is no answer (refused, unreachable).
"""

import argparse
import asyncio
import json
import os
import ssl
import sys
from urllib.parse import urlsplit

import httpx2
from mcp import Client, ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="https://host:port; a path, if any, is used instead of /mcp or /sse")
    parser.add_argument("ca", help="file with the CA certificate of the server")
    parser.add_argument("key", help="API key; @NAME takes it from the environment variable NAME")
    parser.add_argument("tool")
    parser.add_argument("arguments", nargs="?", default="{}", help="JSON object")
    parser.add_argument("--mode", choices=["legacy", "auto", "sse"], default="auto")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for the whole call")
    return parser.parse_args()


def endpoint(url: str, path: str) -> str:
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + path


async def call(args: argparse.Namespace, key: str):
    trust = ssl.create_default_context(cafile=args.ca)
    arguments = json.loads(args.arguments)
    headers = {"Authorization": f"Bearer {key}"}

    # The transports hand over their own headers and limits; what they lack is our CA.
    def http_client(headers=headers, timeout=None, auth=None):
        return httpx2.AsyncClient(headers=headers, timeout=timeout or args.timeout, auth=auth, verify=trust)

    if args.mode == "sse":
        stream = sse_client(endpoint(args.url, "/sse"), headers=headers, httpx_client_factory=http_client)
        async with stream as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            return await session.call_tool(args.tool, arguments)
    async with http_client() as http:
        transport = streamable_http_client(endpoint(args.url, "/mcp"), http_client=http)
        async with Client(transport, mode=args.mode) as client:
            return await client.call_tool(args.tool, arguments)


def reasons(error: BaseException) -> str:
    """The messages of the innermost errors; task groups wrap them several times."""
    # Python 3.10 has no ExceptionGroup to ask for by name.
    if inner := getattr(error, "exceptions", None):
        return "; ".join(reasons(one) for one in inner)
    return f"{type(error).__name__}: {error}"


def main() -> int:
    args = parse()
    key = os.environ[args.key[1:]] if args.key.startswith("@") else args.key
    try:
        result = asyncio.run(asyncio.wait_for(call(args, key), args.timeout))
    except Exception as error:  # Whatever went wrong, the caller wants one line and a status.
        print(reasons(error), file=sys.stderr)
        return 2
    print(result.model_dump_json(by_alias=True, exclude_none=True, indent=2))
    return 1 if result.is_error else 0


if __name__ == "__main__":
    sys.exit(main())
