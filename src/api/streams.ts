import type { ServerResponse } from 'node:http';
import { RouseError } from '../errors.ts';
import type { RouteEvent } from '../lib/route.ts';
import { apiLimits } from '../limits.ts';

/**
 * Server-sent events: what is open, bounded and ended together. A stream that comes to its end
 * says `event: end`, one that fails `event: problem`; one that is cut (the server stops) says
 * nothing, so that a client asks again.
 */
export class Streams {
  readonly #open = new Map<ServerResponse, AbortController>();

  get count(): number {
    return this.#open.size;
  }

  /** Refuses with `busy` when too many are open. The signal is aborted when the client goes. */
  admit(response: ServerResponse): AbortSignal {
    if (this.#open.size >= apiLimits.streamsMax) {
      throw new RouseError('busy', `${this.#open.size} event streams are open already`, {
        advice: 'Close some, or ask for the state once in a while instead.',
      });
    }
    const controller = new AbortController();
    this.#open.set(response, controller);
    response.once('close', () => {
      this.#open.delete(response);
      controller.abort();
    });
    return controller.signal;
  }

  /** Writes until the events end or the client goes. `failed` gives the problem to tell. */
  async write(
    response: ServerResponse,
    events: AsyncIterable<RouteEvent>,
    signal: AbortSignal,
    failed: (error: unknown) => unknown,
  ): Promise<void> {
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-store',
      'x-accel-buffering': 'no',
    });
    response.write(': a stream of Rouse\n\n');
    const keepAlive = setInterval(() => {
      if (response.writableLength === 0) response.write(': here\n\n');
    }, apiLimits.streamKeepAliveMs);
    try {
      for await (const event of events) {
        if (signal.aborted) return;
        if (!response.write(textOf(event))) await drained(response, signal);
      }
      if (!signal.aborted) response.end(textOf({ event: 'end', data: {} }));
    } catch (error) {
      if (!signal.aborted) response.end(textOf({ event: 'problem', data: failed(error) }));
    } finally {
      clearInterval(keepAlive);
    }
  }

  closeAll(): void {
    for (const [response, controller] of this.#open) {
      controller.abort();
      response.destroy();
    }
  }
}

/** JSON has no line breaks of its own, so one `data` line holds it. */
function textOf(event: RouteEvent): string {
  const id = event.id === undefined ? '' : `id: ${event.id}\n`;
  return `${id}event: ${event.event}\ndata: ${JSON.stringify(event.data)}\n\n`;
}

function drained(response: ServerResponse, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      response.off('drain', done);
      signal.removeEventListener('abort', done);
      resolve();
    };
    response.once('drain', done);
    signal.addEventListener('abort', done, { once: true });
  });
}
