// A loopback proxy that adds the key, because the conformance suite sends no headers of its own.
//
//   node proxy.cjs https://HOST:PORT        prints the port it listens on
//
// Host and Origin stay as the client sent them: that the endpoint checks them is part of the suite.
const http = require('node:http');
const https = require('node:https');

const target = new URL(process.argv[2]);
const server = http.createServer((request, response) => {
  const headers = { ...request.headers, 'x-api-key': process.env.PORTCULLIS_KEY };
  const options = { host: target.hostname, port: target.port, method: request.method, path: request.url, headers };
  const upstream = https.request({ ...options, servername: '', setHost: false }, (answer) => {
    response.writeHead(answer.statusCode, answer.rawHeaders);
    response.flushHeaders();
    answer.pipe(response);
  });
  upstream.on('error', (error) => response.destroy(error));
  response.on('close', () => upstream.destroy());
  request.pipe(upstream);
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('close', () => process.exit(0)).resume();
