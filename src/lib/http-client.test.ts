import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import * as http from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { RouseError } from '../errors.ts';
import { apiLimits } from '../limits.ts';
import { httpClient, httpTarget, readEvents } from './http-client.ts';

const directory = mkdtempSync(join(tmpdir(), 'rouse-http-'));
const socket = join(directory, 'server.sock');
const seen: string[] = [];
const server = http.createServer((request, response) => {
  seen.push(`${request.method} ${request.url}`);
  answer(request, response);
});
await new Promise<void>((resolve) => server.listen(socket, resolve));
after(() => {
  server.closeAllConnections();
  server.close();
  rmSync(directory, { recursive: true });
});

function answer(request: http.IncomingMessage, response: http.ServerResponse): void {
  const problem = { code: 'busy', title: 'web01 is busy', status: 409, advice: 'Wait.' };
  const streamHead = { 'content-type': 'text/event-stream' };
  switch (request.url) {
    case '/echo': {
      const parts: Buffer[] = [];
      request.on('data', (part: Buffer) => parts.push(part));
      request.on('end', () => response.end(Buffer.concat(parts)));
      return;
    }
    case '/problem':
      response.writeHead(409).end(JSON.stringify(problem));
      return;
    case '/html':
      response.writeHead(502).end('<html>');
      return;
    case '/silent':
      return;
    case '/stream':
      response.writeHead(200, streamHead);
      response.write(': hello\n\nid: 7\nevent: change\ndata: {"a":\ndata: 1}\n\n');
      response.end('event: end\ndata: {}\n\n');
      return;
    case '/broken':
      response.writeHead(200, streamHead);
      response.write('data: 1\n\n');
      setImmediate(() => response.destroy());
      return;
    case '/stream-problem':
      response.writeHead(200, streamHead);
      response.end(`event: problem\ndata: ${JSON.stringify(problem)}\n\n`);
      return;
    default:
      response.end();
  }
}

const client = httpClient({ url: `unix:${socket}`, peer: 'proxy' });
after(() => client.close());

test('JSON goes there and back over a unix socket', async () => {
  const value = { name: 'wäb01', list: [1, null] };
  assert.deepEqual(await client.post('/echo', value), value);
  assert.equal(await client.get('/nothing'), undefined);
});

test('a problem in the answer is thrown as the error it was', async () => {
  await assert.rejects(client.get('/problem'), (error) => {
    assert.ok(error instanceof RouseError);
    assert.equal(error.code, 'busy');
    assert.equal(error.message, 'web01 is busy');
    assert.equal(error.advice, 'Wait.');
    return true;
  });
});

test('an answer that is not ours is said to be so', async () => {
  await assert.rejects(client.get('/html'), /the proxy answered HTTP 502/);
});

test('a time-out and a signal end the call', async () => {
  await assert.rejects(client.get('/silent', { timeoutMs: 30 }), { code: 'time-out' });
  const controller = new AbortController();
  const call = client.get('/silent', { signal: controller.signal });
  controller.abort();
  await assert.rejects(call, { code: 'cancelled' });
});

test('nobody listens: unreachable, in the words that were given', async () => {
  const gone = join(directory, 'gone.sock');
  await assert.rejects(httpClient({ url: gone, peer: 'proxy' }).get('/'), {
    code: 'proxy-unreachable',
  });
  const unreachable = { message: 'no server runs', advice: 'Start it.' };
  const other = httpClient({ url: gone, peer: 'server', unreachable });
  await assert.rejects(other.post('/'), { code: 'server-unreachable', message: 'no server runs' });
});

test('an idle connection that the peer closed is replaced once', async () => {
  const repeatable = httpClient({ url: socket, peer: 'proxy', repeatable: true });
  await repeatable.get('/one');
  const before = seen.length;
  server.closeIdleConnections();
  await repeatable.post('/two');
  assert.deepEqual(seen.slice(before), ['POST /two']);
  repeatable.close();
});

test('events are read until the end is said', async () => {
  const events = [];
  for await (const event of client.events('/stream')) events.push(event);
  assert.deepEqual(events, [{ event: 'change', id: '7', data: { a: 1 } }]);
});

test('a stream that breaks, and one that reports a problem', async () => {
  const events: unknown[] = [];
  const read = async (path: string) => {
    for await (const event of client.events(path)) events.push(event.data);
  };
  await assert.rejects(read('/broken'), { code: 'proxy-unreachable' });
  assert.deepEqual(events, [1]);
  await assert.rejects(read('/stream-problem'), { code: 'busy' });
  await assert.rejects(read('/problem'), { code: 'busy' });
});

test('an aborted stream ends quietly', async () => {
  const controller = new AbortController();
  const stream = client.events('/silent', controller.signal);
  const next = stream[Symbol.asyncIterator]().next();
  controller.abort();
  assert.equal((await next).done, true);
});

test('event streams may be cut anywhere', async () => {
  const text = 'event: ä\r\ndata: 1\r\n\r\ndata: 2\n\ndata\n\n';
  const whole = await collect([Buffer.from(text)]);
  assert.deepEqual(
    whole.map((event) => [event.event, event.data]),
    [
      ['ä', '1'],
      ['message', '2'],
      ['message', ''],
    ],
  );
  for (let size = 1; size < 9; size += 1) {
    const bytes = Buffer.from(text);
    const parts = [];
    for (let at = 0; at < bytes.length; at += size) parts.push(bytes.subarray(at, at + size));
    assert.deepEqual(await collect(parts), whole);
  }
  const huge = Buffer.alloc(apiLimits.eventBytesMax + 1, 'x');
  await assert.rejects(collect([huge]), { code: 'internal' });
  const manyLines = Buffer.from(`data: ${'x'.repeat(1 << 20)}\n`);
  await assert.rejects(collect(Array(8).fill(manyLines)), { code: 'internal' });
});

async function collect(parts: readonly Uint8Array[]) {
  async function* stream() {
    yield* parts;
  }
  const events = [];
  for await (const event of readEvents(stream())) events.push(event);
  return events;
}

test('addresses', () => {
  assert.deepEqual(httpTarget('unix:/a b'), { socketPath: '/a b' });
  assert.deepEqual(httpTarget('http://[::1]:99'), { host: '::1', port: 99 });
  for (const wrong of ['', 'ftp://x', 'localhost:99', 'https://x']) {
    assert.throws(() => httpTarget(wrong), { code: 'bad-request' });
  }
});
