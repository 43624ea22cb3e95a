import * as http from 'node:http';
import type * as https from 'node:https';
import {
  type ErrorCode,
  errorTable,
  type Problem,
  RouseError,
  systemErrorCode,
} from '../errors.ts';
import { apiLimits } from '../limits.ts';

/**
 * JSON over HTTP with a Rouse process on a unix socket or a TCP port. A problem in the answer is
 * thrown as the RouseError that the other side threw; a peer that does not answer is
 * `server-unreachable` or `proxy-unreachable`. Server-sent events come as an async iterable that
 * ends when the peer says `end` and throws when the stream breaks before that.
 */
export interface HttpClientOptions {
  /** `unix:/run/server.sock`, a bare absolute path, or `http://127.0.0.1:8480`. */
  readonly url: string;
  readonly peer: 'server' | 'proxy';
  /** Said when nobody answers; the table's sentence otherwise. */
  readonly unreachable?: { readonly message: string; readonly advice: string };
  /** For `https:`: the one that knows whom to trust (secure-agent.ts). */
  readonly agent?: https.Agent;
  /** Every call may be sent twice: an idle connection that broke is replaced without a word. */
  readonly repeatable?: boolean;
}

export interface CallOptions {
  /** Until the whole answer is there; 0: as long as it takes. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

export interface ServerEvent {
  readonly event: string;
  readonly id: string | undefined;
  readonly data: unknown;
}

export interface HttpClient {
  get(path: string, options?: CallOptions): Promise<unknown>;
  post(path: string, body?: unknown, options?: CallOptions): Promise<unknown>;
  delete(path: string, options?: CallOptions): Promise<unknown>;
  /** The body as it is: a picture, metrics. */
  bytes(path: string, options?: CallOptions): Promise<Buffer>;
  events(path: string, signal?: AbortSignal): AsyncIterable<ServerEvent>;
  close(): void;
}

/** What `url` names, for node:http; `https:` alone when `isSecure`. Throws `bad-request`. */
export function httpTarget(url: string, isSecure = false): http.RequestOptions {
  const path = url.startsWith('unix:') ? url.slice('unix:'.length) : url;
  if (path.startsWith('/')) return { socketPath: path };
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  const protocol = isSecure ? 'https:' : 'http:';
  if (parsed?.protocol !== protocol || parsed.hostname === '') {
    throw new RouseError('bad-request', `"${url}" is not the address of a server`, {
      advice: isSecure
        ? 'Write https://HOST:PORT, as rouse proxy token prints it.'
        : 'Write unix:/path/of/server.sock or http://127.0.0.1:PORT.',
    });
  }
  const host = parsed.hostname.replace(/^\[|\]$/g, '');
  if (!isSecure) return { host, port: parsed.port === '' ? 80 : Number(parsed.port) };
  return { protocol, host, port: parsed.port === '' ? 443 : Number(parsed.port) };
}

export function httpClient(options: HttpClientOptions): HttpClient {
  return new Connection(options);
}

class Connection implements HttpClient {
  readonly #options: HttpClientOptions;
  readonly #target: http.RequestOptions;
  readonly #agent: http.Agent;

  constructor(options: HttpClientOptions) {
    this.#options = options;
    this.#agent = options.agent ?? new http.Agent({ keepAlive: true, maxFreeSockets: 8 });
    this.#target = httpTarget(options.url, options.agent !== undefined);
  }

  get(path: string, options: CallOptions = {}): Promise<unknown> {
    return this.#json('GET', path, undefined, options);
  }

  post(path: string, body?: unknown, options: CallOptions = {}): Promise<unknown> {
    return this.#json('POST', path, body ?? {}, options);
  }

  delete(path: string, options: CallOptions = {}): Promise<unknown> {
    return this.#json('DELETE', path, undefined, options);
  }

  async bytes(path: string, options: CallOptions = {}): Promise<Buffer> {
    return (await this.#call('GET', path, undefined, options)).body;
  }

  close(): void {
    this.#agent.destroy();
  }

  async #json(method: string, path: string, body: unknown, options: CallOptions) {
    const answer = await this.#call(method, path, body, options);
    return answer.body.length === 0 ? undefined : this.#parse(answer.body.toString('utf8'));
  }

  #parse(text: string): unknown {
    try {
      return JSON.parse(text);
    } catch {
      throw new RouseError('internal', `the ${this.#options.peer}'s answer is not JSON`, {
        advice: 'Check that this address belongs to Rouse.',
      });
    }
  }

  async #call(method: string, path: string, body: unknown, options: CallOptions) {
    const mayRepeat = method === 'GET' || this.#options.repeatable === true;
    try {
      return await this.#once(method, path, body, options);
    } catch (error) {
      if (!(mayRepeat && error instanceof StaleConnection)) throw unwrapStale(error);
    }
    // Only a connection that had been idle is replaced, so the second try is on a fresh one.
    return await this.#once(method, path, body, options).catch((error: unknown) => {
      throw unwrapStale(error);
    });
  }

  #once(method: string, path: string, body: unknown, options: CallOptions) {
    const timeoutMs = options.timeoutMs ?? apiLimits.callTimeoutMs;
    const timeout = timeoutMs > 0 ? AbortSignal.timeout(timeoutMs) : undefined;
    const signals = [options.signal, timeout].filter((signal) => signal !== undefined);
    return new Promise<{ status: number; body: Buffer }>((resolve, reject) => {
      const fail = (error: unknown) =>
        reject(this.#failure(error, request.reusedSocket, options.signal, timeout, timeoutMs));
      const request = this.#request(method, path, body, AbortSignal.any(signals));
      request.on('error', fail);
      request.on('response', (response) => {
        readAll(response, apiLimits.responseBytesMax).then((bytes) => {
          const status = response.statusCode ?? 0;
          if (status >= 200 && status < 300) resolve({ status, body: bytes });
          else reject(this.#problem(status, bytes));
        }, fail);
      });
    });
  }

  #request(
    method: string,
    path: string,
    body: unknown,
    signal?: AbortSignal,
    accept = 'application/json',
  ): http.ClientRequest {
    const text = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
    const headers: http.OutgoingHttpHeaders = { accept };
    if (text !== undefined) {
      headers['content-type'] = 'application/json';
      headers['content-length'] = text.length;
    }
    const request = http.request({
      ...this.#target,
      agent: this.#agent,
      method,
      path,
      headers,
      ...(signal === undefined ? {} : { signal }),
    });
    request.end(text);
    return request;
  }

  #problem(status: number, body: Buffer): RouseError {
    try {
      const problem: unknown = JSON.parse(body.toString('utf8'));
      if (isProblem(problem)) return RouseError.fromProblem(problem);
    } catch {
      // Not a problem: said below with the status alone.
    }
    return new RouseError('internal', `the ${this.#options.peer} answered HTTP ${status}`, {
      advice: 'Check that this address belongs to Rouse.',
    });
  }

  #failure(
    error: unknown,
    reused: boolean,
    signal: AbortSignal | undefined,
    timeout: AbortSignal | undefined,
    timeoutMs: number,
  ): Error {
    if (error instanceof RouseError) return error;
    if (signal?.aborted) {
      return signal.reason instanceof RouseError
        ? signal.reason
        : new RouseError('cancelled', 'the call was given up');
    }
    if (timeout?.aborted) {
      const seconds = Math.round(timeoutMs / 1000);
      return new RouseError(
        'time-out',
        `the ${this.#options.peer} has not answered in ${seconds} s`,
      );
    }
    const code = systemErrorCode(error);
    if (code === 'EACCES' || code === 'EPERM') {
      const { peer, url } = this.#options;
      return new RouseError('forbidden', `this user may not speak to the ${peer} at ${url}`, {
        cause: error,
        advice: `Run it as the user that runs the ${peer}.`,
      });
    }
    const unreachable = this.#unreachable(error);
    const stale = reused && (code === 'ECONNRESET' || code === 'EPIPE');
    return stale ? new StaleConnection(unreachable) : unreachable;
  }

  #unreachable(error: unknown): RouseError {
    const { peer, unreachable, url } = this.#options;
    const code: ErrorCode = peer === 'server' ? 'server-unreachable' : 'proxy-unreachable';
    const reason = systemErrorCode(error) ?? (error instanceof Error ? error.message : '');
    const message = unreachable?.message ?? `the ${peer} at ${url} does not answer (${reason})`;
    return new RouseError(code, message, {
      cause: error,
      ...(unreachable === undefined ? {} : { advice: unreachable.advice }),
    });
  }

  async *events(path: string, signal?: AbortSignal): AsyncGenerator<ServerEvent> {
    if (signal?.aborted) return;
    const request = this.#request('GET', path, undefined, signal, 'text/event-stream');
    try {
      yield* this.#eventsOf(await responseOf(request));
    } catch (error) {
      if (signal?.aborted) return;
      throw error instanceof RouseError ? error : this.#unreachable(error);
    } finally {
      request.destroy();
    }
  }

  async *#eventsOf(response: http.IncomingMessage): AsyncGenerator<ServerEvent> {
    const status = response.statusCode ?? 0;
    if (status !== 200) {
      throw this.#problem(status, await readAll(response, apiLimits.responseBytesMax));
    }
    response.socket.setTimeout(apiLimits.streamSilenceMsMax, () => response.destroy());
    for await (const event of readEvents(response)) {
      if (event.event === 'end') return;
      const data = this.#parse(event.data);
      if (event.event === 'problem' && isProblem(data)) throw RouseError.fromProblem(data);
      yield { event: event.event, id: event.id, data };
    }
    throw this.#unreachable(new Error('the stream ended early'));
  }
}

/** A connection that the peer had closed while it was idle: the call was not taken up. */
class StaleConnection extends Error {
  readonly unreachable: RouseError;

  constructor(unreachable: RouseError) {
    super(unreachable.message);
    this.unreachable = unreachable;
  }
}

function unwrapStale(error: unknown): unknown {
  return error instanceof StaleConnection ? error.unreachable : error;
}

function isProblem(value: unknown): value is Problem {
  if (typeof value !== 'object' || value === null) return false;
  const { code, title, advice } = value as Partial<Problem>;
  return (
    typeof code === 'string' &&
    code in errorTable &&
    typeof title === 'string' &&
    typeof advice === 'string'
  );
}

function responseOf(request: http.ClientRequest): Promise<http.IncomingMessage> {
  return new Promise((resolve, reject) => {
    request.on('error', reject);
    request.once('response', resolve);
  });
}

async function readAll(stream: http.IncomingMessage, bytesMax: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > bytesMax) {
      throw new RouseError('internal', `the answer is larger than ${bytesMax} bytes`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** The WHATWG event-stream format: fields by line, an empty line dispatches, `:` is a comment. */
export async function* readEvents(
  stream: AsyncIterable<Uint8Array>,
): AsyncGenerator<{ event: string; id: string | undefined; data: string }> {
  const decoder = new TextDecoder();
  let rest = '';
  let event = { event: 'message', id: undefined as string | undefined, data: [] as string[] };
  let dataLength = 0;
  for await (const chunk of stream) {
    rest += decoder.decode(chunk, { stream: true });
    if (rest.length + dataLength > apiLimits.eventBytesMax) {
      throw new RouseError('internal', `an event is larger than ${apiLimits.eventBytesMax} bytes`);
    }
    // A lone CR at the end may be half of CR LF: it stays until more comes.
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line === '') {
        if (event.data.length > 0) yield { ...event, data: event.data.join('\n') };
        event = { event: 'message', id: event.id, data: [] };
        dataLength = 0;
        continue;
      }
      const colon = line.indexOf(':');
      if (colon === 0) continue;
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
      if (field === 'event') event.event = value;
      else if (field === 'id') event.id = value;
      else if (field === 'data') {
        event.data.push(value);
        dataLength += value.length;
      }
    }
  }
}
