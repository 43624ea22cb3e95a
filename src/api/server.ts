import { chmodSync, unlinkSync } from 'node:fs';
import { connect, isIP } from 'node:net';
import type { IncomingMessage } from 'node:http';
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { backupRoutes } from '../backup/routes.ts';
import { catalogRoutes, hypervisorRoutes, statusRoutes } from '../catalog/routes.ts';
import { vaultRoutes } from '../catalog/vault-routes.ts';
import { RouseError, systemErrorCode, toRouseError } from '../errors.ts';
import type { Random } from '../lib/random.ts';
import type { Call, Route } from '../lib/route.ts';
import { nearest } from '../lib/text.ts';
import { apiLimits } from '../limits.ts';
import { proxyRoutes } from '../placement/routes.ts';
import { reconcileRoutes, recoveryRoutes } from '../recovery/routes.ts';
import { openApi } from './openapi.ts';
import { check, problemOf } from './problems.ts';
import type { Services } from './services.ts';
import { Streams } from './streams.ts';

/**
 * The HTTP face of the server. Routes are values that features describe (lib/route.ts); here they
 * are checked, run and answered. A unix socket of mode 0600 is the sign-on; TCP is for the loopback
 * alone and refuses what a web page of another site could send.
 */
export interface ApiOptions {
  readonly services: Services;
  readonly log: ApiLog;
  readonly random: Random;
  readonly version: string;
  readonly listen: ApiListen;
}

export interface ApiListen {
  /** Path of a unix socket. */
  readonly socket?: string;
  /** A loopback address; port 0 takes a free one. */
  readonly tcp?: { readonly host: string; readonly port: number };
}

/** pino's logger is one. */
export interface ApiLog {
  info(facts: object, message: string): void;
  error(facts: object, message: string): void;
}

export interface Api {
  /** `unix:/…` and `http://127.0.0.1:…`, as http-client.ts takes them. */
  readonly urls: readonly string[];
  close(): Promise<void>;
}

export async function createApi(options: ApiOptions): Promise<Api> {
  const { listen, log } = options;
  const apps: FastifyInstance[] = [];
  const urls: string[] = [];
  const close = async () => {
    await Promise.all(apps.map((app) => app.close()));
  };
  try {
    if (listen.socket !== undefined) {
      const app = buildApi(options);
      apps.push(app);
      await listenOnSocket(app, listen.socket);
      urls.push(`unix:${listen.socket}`);
    }
    if (listen.tcp !== undefined) {
      const app = buildApi(options, true);
      apps.push(app);
      urls.push(await listenOnLoopback(app, listen.tcp));
    }
  } catch (error) {
    await close();
    throw error;
  }
  log.info({ urls }, 'the API listens');
  return { urls, close };
}

/** The application without a listener, for tests (`inject`) and for `createApi`. */
export function buildApi(options: Omit<ApiOptions, 'listen'>, overTcp = false): FastifyInstance {
  const streams = new Streams();
  const app = Fastify({
    logger: false,
    bodyLimit: apiLimits.requestBytesMax,
    requestTimeout: apiLimits.requestReadTimeoutMs,
    forceCloseConnections: 'idle',
    routerOptions: { maxParamLength: 1024, ignoreTrailingSlash: true },
  });
  app.addHook('preClose', async () => streams.closeAll());
  if (overTcp) app.addHook('onRequest', async (request) => refuseForeign(request.raw));
  const routes = routesOf(options.services, options.version);
  app.setErrorHandler((error, request, reply) => answerProblem(error, request, reply, options));
  app.setNotFoundHandler((request) => {
    throw unknownRoute(request, routes);
  });
  for (const route of routes) {
    app.route({
      method: route.method,
      url: route.path,
      handler: (request, reply) => run(route, request, reply, streams, options),
    });
  }
  return app;
}

function routesOf(services: Services, version: string): readonly Route[] {
  const routes: Route[] = [
    ...statusRoutes(services.status, services.exports, services.events),
    ...catalogRoutes(services.catalog),
    ...recoveryRoutes(services.recoveries),
    ...reconcileRoutes(services.reconciler),
    ...backupRoutes(services.backups),
    ...hypervisorRoutes(services.hypervisors),
    ...vaultRoutes(services.vault),
    ...proxyRoutes(services.proxies, services.proxyTokens),
    {
      method: 'GET',
      path: '/metrics',
      summary: 'Metrics as Prometheus reads them',
      tag: 'status',
      bytes: { type: 'text/plain; version=0.0.4; charset=utf-8', read: () => services.metrics() },
    },
  ];
  let document: unknown;
  routes.push({
    method: 'GET',
    path: '/v1/openapi.json',
    summary: 'This document',
    tag: 'status',
    // Made when first asked for: it takes longer than all other answers together.
    handle: async () => (document ??= openApi(routes, version)),
  });
  return routes;
}

async function run(
  route: Route,
  request: FastifyRequest,
  reply: FastifyReply,
  streams: Streams,
  options: Omit<ApiOptions, 'listen'>,
): Promise<unknown> {
  const call = callOf(route, request, abortedWhenGone(reply));
  const wantsEvents = (request.headers.accept ?? '').includes('text/event-stream');
  if (route.events !== undefined && (wantsEvents || route.handle === undefined)) {
    const signal = streams.admit(reply.raw);
    // What throws here is still answered as a problem; later the stream itself carries it.
    const events = route.events({ ...call, signal });
    reply.hijack();
    await streams.write(reply.raw, events, signal, (error) => tell(error, request, options));
    return undefined;
  }
  if (route.bytes !== undefined) {
    const content = await route.bytes.read(call);
    const body = typeof content === 'string' ? content : Buffer.from(content);
    return reply.type(route.bytes.type).send(body);
  }
  const answer = await route.handle?.(call);
  const location = route.location?.(answer);
  if (location !== undefined) void reply.header('location', location);
  const planned = route.status === 202 && route.location !== undefined && location === undefined;
  void reply.code(planned ? 200 : (route.status ?? 200));
  return reply.type('application/json; charset=utf-8').send(JSON.stringify(answer) ?? '');
}

function callOf(
  route: Route,
  request: FastifyRequest,
  signal: AbortSignal,
): Call<string, unknown, unknown> {
  const { body: schema, query } = route;
  const body = request.body ?? {};
  if (schema === undefined && Object.keys(body).length > 0) {
    throw new RouseError('bad-request', `${route.method} ${route.path} takes no fields`);
  }
  return {
    params: request.params as Record<string, string>,
    query:
      query === undefined ? undefined : check(query, { ...(request.query as object) }, 'query'),
    body: schema === undefined ? undefined : check(schema, body, 'request'),
    signal,
  };
}

function abortedWhenGone(reply: FastifyReply): AbortSignal {
  const controller = new AbortController();
  reply.raw.once('close', () => controller.abort());
  return controller.signal;
}

function answerProblem(
  error: unknown,
  request: FastifyRequest,
  reply: FastifyReply,
  options: Omit<ApiOptions, 'listen'>,
): FastifyReply {
  const problem = tell(error, request, options);
  return reply
    .code(problem.status)
    .type('application/problem+json; charset=utf-8')
    .send(JSON.stringify(problem));
}

function tell(error: unknown, request: FastifyRequest, options: Omit<ApiOptions, 'listen'>) {
  const { problem, incident } = problemOf(error, () => options.random.id());
  if (incident !== undefined) {
    const facts = { incident: incident.id, err: incident.error, url: request.url };
    options.log.error(facts, `${request.method} failed inside of the server`);
  }
  return problem;
}

function unknownRoute(request: FastifyRequest, routes: readonly Route[]): RouseError {
  const path = request.url.split('?')[0] ?? '';
  const methods = routes.filter((route) => matches(route.path, path)).map((route) => route.method);
  if (methods.length > 0) {
    return new RouseError('not-found', `${path} does not take ${request.method}`, {
      advice: `Use ${[...new Set(methods)].join(' or ')}.`,
    });
  }
  const near = nearest(
    path,
    routes.map((route) => route.path),
    1,
  );
  return new RouseError('not-found', `there is nothing at ${path.slice(0, 200)}`, {
    advice:
      near[0] === undefined
        ? 'See /v1/openapi.json for all that there is.'
        : `Did you mean ${near[0]}?`,
  });
}

function matches(pattern: string, path: string): boolean {
  const wanted = pattern.split('/');
  const given = path.split('/');
  return (
    wanted.length === given.length &&
    wanted.every((part, index) => part.startsWith(':') || part === given[index])
  );
}

/**
 * A page of another site may make a browser on this machine send requests here, by a foreign
 * origin or by a name that it points at 127.0.0.1. Neither has a loopback Host with our Origin.
 */
function refuseForeign(request: IncomingMessage): void {
  const { host, origin } = request.headers;
  const name = (host ?? '').replace(/:\d+$/, '').replace(/^\[|\]$/g, '');
  if (!isLoopback(name)) {
    throw new RouseError('forbidden', `this server is not "${name}"`, {
      advice: 'Use its loopback address.',
    });
  }
  if (origin !== undefined && origin !== `http://${host}`) {
    throw new RouseError('forbidden', `pages of ${origin} may not use this server`);
  }
}

function isLoopback(name: string): boolean {
  return name === 'localhost' || name === '::1' || (isIP(name) === 4 && name.startsWith('127.'));
}

async function listenOnLoopback(
  app: FastifyInstance,
  { host, port }: { readonly host: string; readonly port: number },
): Promise<string> {
  if (!isLoopback(host)) {
    throw new RouseError('bad-request', `the API does not listen on ${host}`, {
      advice: 'Give a loopback address such as 127.0.0.1: there is no sign-on yet.',
    });
  }
  try {
    return await app.listen({ host, port });
  } catch (error) {
    throw toRouseError(error, `the API at ${host} port ${port}`);
  }
}

async function listenOnSocket(app: FastifyInstance, socket: string): Promise<void> {
  await removeStaleSocket(socket);
  try {
    await app.listen({ path: socket });
    chmodSync(socket, 0o600);
  } catch (error) {
    throw toRouseError(error, `the socket ${socket}`);
  }
}

/** A killed server leaves its socket behind; one that still answers is another server. */
async function removeStaleSocket(socket: string): Promise<void> {
  const outcome = await new Promise<string>((resolve) => {
    const probe = connect({ path: socket });
    probe.once('connect', () => {
      probe.destroy();
      resolve('answers');
    });
    probe.once('error', (error) => resolve(systemErrorCode(error) ?? ''));
  });
  if (outcome === 'answers') {
    throw new RouseError('busy', `a server listens on ${socket} already`, {
      advice: 'Stop it first, or use another data directory.',
    });
  }
  if (outcome === 'ECONNREFUSED') unlinkSync(socket);
}
