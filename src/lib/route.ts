import type { z } from 'zod';

/**
 * One address of the HTTP API, described as a value, so that a feature can say what it offers
 * without knowing the HTTP server, and the OpenAPI document is made from the same description.
 * src/api/server.ts checks the request by the schemas, runs the handler and writes the answer.
 */
export interface RouteDescription<
  Params extends string,
  Query extends z.ZodType,
  Body extends z.ZodType,
> {
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** `/v1/recoveries/:recovery`; every `:name` is one of `Params`. */
  readonly path: `/${string}`;
  /** One line for the OpenAPI document. */
  readonly summary: string;
  readonly tag: string;
  readonly params?: readonly Params[];
  readonly query?: Query;
  readonly body?: Body;
  /** Shape of the JSON answer; none: an empty one. */
  readonly answer?: z.ZodType;
  /** Status of success; 200 when missing. */
  readonly status?: 201 | 202 | 204;
  /** Address of what was made, for the Location header. */
  location?(answer: unknown): string | undefined;
  handle?(call: Call<Params, z.output<Query>, z.output<Body>>): Promise<unknown>;
  /** Answers `Accept: text/event-stream`; ends the stream when it returns. */
  events?(call: Call<Params, z.output<Query>, z.output<Body>>): AsyncIterable<RouteEvent>;
  /** Answers bytes of this type instead of JSON. */
  readonly bytes?: {
    readonly type: string;
    read(call: Call<Params, z.output<Query>, z.output<Body>>): Promise<Uint8Array | string>;
  };
}

export interface Call<Params extends string, Query, Body> {
  readonly params: Readonly<Record<Params, string>>;
  readonly query: Query;
  readonly body: Body;
  /** Aborted when the caller goes away or the server stops. */
  readonly signal: AbortSignal;
}

export interface RouteEvent {
  /** `change`, `event`. */
  readonly event: string;
  readonly id?: string;
  readonly data: unknown;
}

/** A route whose types were checked where it was written. */
export type Route = RouteDescription<string, z.ZodType, z.ZodType>;

export function route<
  Params extends string = never,
  Query extends z.ZodType = z.ZodType<undefined>,
  Body extends z.ZodType = z.ZodType<undefined>,
>(description: RouteDescription<Params, Query, Body>): Route {
  // The server calls the handlers with what these very schemas made of the request.
  return description as unknown as Route;
}

/** Each view of a watched thing as an event. */
export async function* changes(
  views: AsyncIterable<unknown>,
): AsyncGenerator<RouteEvent, void, undefined> {
  for await (const data of views) yield { event: 'change', data };
}
