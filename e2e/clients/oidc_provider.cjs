// A real OpenID Connect provider for the end-to-end tests: the npm package oidc-provider, offline, over https.
//
//   node oidc_provider.cjs CERTIFICATE KEY ALGORITHM RESOURCE [PORT]
//
// Prints {"issuer": ...} and serves until its input ends. The client "robot" (secret "robot-secret") gets access tokens
// for RESOURCE by client_credentials, as JWTs signed with ALGORITHM. One command a line, one JSON object in answer:
//
//   rotate           a new key signs from now on; the old ones stay in the key set
//   announce         a new key appears in the key set; the old one still signs
//   promote          the announced key signs
//   drop             the key set is only the key that signs
//   sign JSON        a token of the provider's own key with these claims; "header" in it adds to the header
//   fetches          how often the key set was fetched
const { Provider } = require('oidc-provider');
const { CompactSign, exportJWK, generateKeyPair, importJWK } = require('jose');
const crypto = require('node:crypto');
const fs = require('node:fs');
const https = require('node:https');
const readline = require('node:readline');

const [certificate, key, algorithm, resource, port = '0'] = process.argv.slice(2);
// Newest first but for an announced one: oidc-provider signs with the first key that fits.
let keys = [];
let provider;
let issuer;
let fetches = 0;

async function newKey() {
  const { privateKey } = await generateKeyPair(algorithm, { extractable: true });
  return { ...(await exportJWK(privateKey)), use: 'sig', alg: algorithm, kid: crypto.randomUUID() };
}

// The provider takes its keys when it is made; a new one of the same name and clients takes the old one's place.
function publish() {
  const made = new Provider(issuer, {
    clients: [
      {
        client_id: 'robot',
        client_secret: 'robot-secret',
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        token_endpoint_auth_method: 'client_secret_post',
        id_token_signed_response_alg: algorithm,
      },
    ],
    jwks: { keys },
    ttl: { ClientCredentials: 600 },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_context, indicator) => ({
          scope: 'k8s:pods:list k8s:namespaces:list',
          audience: indicator,
          accessTokenTTL: 600,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: algorithm } },
        }),
      },
    },
    extraTokenClaims: () => ({ groups: ['robots'] }),
  });
  const handle = made.callback();
  provider = (request, response) => {
    if (request.url === '/jwks') fetches += 1;
    handle(request, response);
  };
}

async function sign(json) {
  const { header = {}, ...claims } = JSON.parse(json);
  const signer = await importJWK(keys[0], algorithm);
  const bytes = new TextEncoder().encode(JSON.stringify(claims));
  const protect = { alg: algorithm, kid: keys[0].kid, typ: 'at+jwt', ...header };
  // The library wants to know that we mean what we call critical.
  const crit = Object.fromEntries((header.crit ?? []).map((name) => [name, true]));
  return new CompactSign(bytes).setProtectedHeader(protect).sign(signer, { crit });
}

const commands = {
  rotate: async () => {
    keys = [await newKey(), ...keys];
    publish();
    return { kid: keys[0].kid };
  },
  announce: async () => {
    keys = [...keys, await newKey()];
    publish();
    return { kid: keys.at(-1).kid };
  },
  promote: async () => {
    keys = [keys.at(-1), ...keys.slice(0, -1)];
    publish();
    return { kid: keys[0].kid };
  },
  drop: async () => {
    keys = keys.slice(0, 1);
    publish();
    return { kid: keys[0].kid };
  },
  sign: async (json) => ({ token: await sign(json) }),
  fetches: async () => ({ fetches }),
};

async function run() {
  const options = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key) };
  const server = https.createServer(options, (request, response) => provider(request, response));
  await new Promise((resolve) => server.listen(Number(port), '127.0.0.1', resolve));
  issuer = `https://127.0.0.1:${server.address().port}`;
  keys = [await newKey()];
  publish();
  console.log(JSON.stringify({ issuer }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [, command, rest] = line.match(/^(\w+) ?(.*)$/) ?? [];
    const answer = commands[command] ? await commands[command](rest) : { error: `unknown command: ${line}` };
    console.log(JSON.stringify(answer));
  }
  process.exit(0);
}

run().catch((error) => {
  console.error(error);
  process.exit(1);
});
