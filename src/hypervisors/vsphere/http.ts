import type { ClientRequest, IncomingHttpHeaders, IncomingMessage } from 'node:http';
import * as https from 'node:https';
import { RouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';
import { connectionError, nameOf, TrustedAgent } from './trust.ts';
import type { Trust } from './trust.ts';

/** HTTP with one trusted peer: bounded in time, in bytes and in calls at once. */
export interface HttpCall {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** `/sdk`, `/folder/…?dsName=…`, already encoded. */
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
  readonly replyBytesMax?: number;
  /** The one status whose body is wanted; that of any other is not taken. */
  readonly only?: number | undefined;
  /** Sent again when an idle connection turns out to be dead. */
  readonly repeatable?: boolean;
  /** Waits for news by design: does not take one of the places of short calls. */
  readonly isLong?: boolean;
}

export interface HttpReply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

/** An answer whose body comes as it is asked for; who does not read it to its end aborts it. */
export interface HttpStream {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: AsyncIterable<Buffer>;
}

export class TrustedHttp {
  /** Where it is: for sentences. */
  readonly name: string;
  readonly #host: string;
  readonly #port: number;
  readonly #agent: TrustedAgent;
  readonly #places = new Places(vsphereLimits.callsMax);

  constructor(url: URL, trust: Trust) {
    this.#host = url.hostname.replace(/^\[|\]$/gu, '');
    this.#port = url.port === '' ? 443 : Number(url.port);
    this.name = nameOf({ host: this.#host, port: this.#port });
    this.#agent = new TrustedAgent(trust);
  }

  async call(call: HttpCall): Promise<HttpReply> {
    const leave = call.isLong === true ? () => undefined : await this.#places.enter();
    try {
      return await this.#once(call, call.repeatable === true);
    } finally {
      leave();
    }
  }

  /** GET of something large. Fails when nothing comes for `silenceMs` while it is waited for. */
  async stream(call: {
    readonly path: string;
    readonly headers?: Readonly<Record<string, string>>;
    readonly silenceMs: number;
    readonly signal: AbortSignal;
  }): Promise<HttpStream> {
    const { path, headers = {}, silenceMs, signal } = call;
    const what = `GET ${path.replace(/\?.*$/u, '')}`;
    const late = () =>
      new RouseError('time-out', `${this.name} sent nothing for ${silenceMs} ms: ${what}`, {
        advice: 'Look at the load of the host and of its storage.',
      });
    if (signal.aborted) throw cancelled(what);
    const at = { host: this.#host, port: this.#port };
    const request = https.request({ ...at, agent: this.#agent, method: 'GET', path, headers });
    const onAbort = () => request.destroy(cancelled(what));
    signal.addEventListener('abort', onAbort, { once: true });
    const over = () => signal.removeEventListener('abort', onAbort);
    try {
      const response = await answerOf(request, silenceMs, late);
      const failure = (error: Error) => this.#failure(error, { reusedSocket: false });
      const body = piecesOf(response, { silenceMs, late, failure, over });
      return { status: response.statusCode ?? 0, headers: response.headers, body };
    } catch (error) {
      over();
      throw this.#failure(error instanceof Error ? error : new Error(String(error)), {
        reusedSocket: false,
      });
    }
  }

  close(): void {
    this.#agent.destroy();
  }

  async #once(call: HttpCall, mayRepeat: boolean): Promise<HttpReply> {
    try {
      return await this.#send(call);
    } catch (error) {
      if (!(error instanceof StaleConnection)) throw error;
      if (mayRepeat) return this.#once(call, false);
      throw error.inner;
    }
  }

  #send(call: HttpCall): Promise<HttpReply> {
    const timeoutMs = call.timeoutMs ?? vsphereLimits.callTimeoutMs;
    const what = `${call.method} ${call.path.replace(/\?.*$/u, '')}`;
    const late = () =>
      new RouseError(
        'time-out',
        `${this.name} did not answer ${what} within ${timeoutMs / 1000} s`,
        {
          advice: 'Look at its load; the call may have taken effect all the same.',
        },
      );
    return new Promise((resolve, reject) => {
      if (call.signal?.aborted) return reject(cancelled(what));
      const request = https.request({
        host: this.#host,
        port: this.#port,
        agent: this.#agent,
        method: call.method,
        path: call.path,
        headers: {
          ...call.headers,
          ...(call.body === undefined ? {} : { 'Content-Length': Buffer.byteLength(call.body) }),
        },
      });
      const timer = setTimeout(() => request.destroy(late()), timeoutMs);
      const onAbort = () => request.destroy(cancelled(what));
      call.signal?.addEventListener('abort', onAbort, { once: true });
      const settle = (end: () => void) => {
        clearTimeout(timer);
        call.signal?.removeEventListener('abort', onAbort);
        end();
      };
      const fail = (error: Error) => settle(() => reject(this.#failure(error, request)));
      request.once('error', fail);
      request.once('response', (response) => {
        const { statusCode: status = 0, headers } = response;
        if (call.only !== undefined && status !== call.only) {
          settle(() => resolve({ status, headers, body: Buffer.alloc(0) }));
          request.destroy();
          return;
        }
        collect(response, call.replyBytesMax ?? vsphereLimits.replyBytesMax, what).then(
          (body) => settle(() => resolve({ status, headers, body })),
          (error: unknown) => {
            request.destroy();
            fail(error instanceof Error ? error : new Error(String(error)));
          },
        );
      });
      request.end(call.body);
    });
  }

  #failure(error: Error, request: { readonly reusedSocket: boolean }): Error {
    const known = connectionError(error, { host: this.#host, port: this.#port });
    const isBroken = known.code === 'hypervisor-unreachable' && !(error instanceof RouseError);
    return request.reusedSocket && isBroken ? new StaleConnection(known) : known;
  }
}

/** The connection had been idle and was closed by the other side before anything came back. */
class StaleConnection extends Error {
  readonly inner: RouseError;

  constructor(inner: RouseError) {
    super(inner.message);
    this.inner = inner;
  }
}

function answerOf(
  request: ClientRequest,
  silenceMs: number,
  late: () => RouseError,
): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => request.destroy(late()), silenceMs);
    request.once('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    request.once('response', (response) => {
      clearTimeout(timer);
      resolve(response);
    });
    request.end();
  });
}

/** Time runs only while something is waited for: who takes long to store it is not at fault. */
async function* piecesOf(
  response: IncomingMessage,
  how: {
    readonly silenceMs: number;
    late(): RouseError;
    failure(error: Error): Error;
    over(): void;
  },
): AsyncGenerator<Buffer> {
  const pieces = response[Symbol.asyncIterator]() as AsyncIterator<unknown>;
  try {
    for (;;) {
      const timer = setTimeout(() => response.destroy(how.late()), how.silenceMs);
      const { done, value } = await pieces.next().finally(() => clearTimeout(timer));
      if (done === true) return;
      yield Buffer.isBuffer(value) ? value : Buffer.from(String(value));
    }
  } catch (error) {
    throw how.failure(error instanceof Error ? error : new Error(String(error)));
  } finally {
    response.destroy();
    how.over();
  }
}

async function collect(
  response: AsyncIterable<unknown>,
  bytesMax: number,
  what: string,
): Promise<Buffer> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of response) {
    const bytes = Buffer.isBuffer(part) ? part : Buffer.from(String(part));
    size += bytes.length;
    if (size > bytesMax) {
      throw new RouseError('hypervisor-error', `the answer to ${what} is larger than ${bytesMax}`);
    }
    parts.push(bytes);
  }
  return Buffer.concat(parts);
}

function cancelled(what: string): RouseError {
  return new RouseError('cancelled', `${what} was cancelled`);
}

/** Calls at once; the rest queues in order. */
class Places {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async enter(): Promise<() => void> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return () => {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free += 1;
      else next();
    };
  }
}
