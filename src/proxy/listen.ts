import * as fs from 'node:fs';
import Fastify, { type FastifyInstance, type FastifyServerFactory } from 'fastify';
import type { FastifyServerOptions } from 'fastify';
import { RouseError, toRouseError } from '../errors.ts';
import type { Identity } from '../lib/identity.ts';
import { peerOf, secureServer } from '../lib/secure-server.ts';
import { proxyLimits } from '../limits.ts';
import type { Proxy } from './port.ts';
import { proxyRoutes } from './routes.ts';

/**
 * Serves a proxy's calls on a unix socket that only its owner may open. The data directory is
 * locked by then, so a socket file that is there was left by a process that is gone.
 */
export async function listenForServer(
  proxy: Proxy,
  socket: string,
  onError: (error: unknown, call: string) => void,
): Promise<FastifyInstance> {
  const app = answering(proxy, onError);
  fs.rmSync(socket, { force: true });
  await app.listen({ path: socket });
  fs.chmodSync(socket, 0o600);
  return app;
}

export interface SecureListener {
  readonly port: number;
  /** Shows another certificate from now on. */
  show(identity: Identity): void;
  close(): Promise<void>;
}

/** The same calls over TLS, for the server on another machine and for nobody else. */
export async function listenForRemoteServer(
  proxy: Proxy,
  at: { readonly port: number; readonly identity: Identity },
  onError: (error: unknown, call: string) => void,
): Promise<SecureListener> {
  const server = secureServer(at.identity, false);
  const app = answering(proxy, onError, server.factory);
  app.addHook('onRequest', async (request) => {
    if (peerOf(request.raw)?.facts.role === 'Rouse server') return;
    throw new RouseError('forbidden', 'only the server may call a proxy');
  });
  try {
    await app.listen({ port: at.port, host: '::' });
  } catch (error) {
    throw toRouseError(error, `the port ${at.port} for the server's calls`);
  }
  return {
    port: server.port(),
    show: (identity) => server.show(identity),
    close: () => app.close(),
  };
}

function answering(
  proxy: Proxy,
  onError: (error: unknown, call: string) => void,
  serverFactory?: FastifyServerFactory,
): FastifyInstance {
  const options: FastifyServerOptions = { bodyLimit: proxyLimits.requestBytesMax };
  const app = Fastify(
    serverFactory === undefined
      ? options
      : { ...options, forceCloseConnections: true, serverFactory },
  );
  app.setErrorHandler(async (thrown, request, reply) => {
    const error = toRouseError(thrown, request.url);
    if (error.code === 'internal') onError(thrown, request.url);
    const problem = error.toProblem();
    await reply.code(problem.status).type('application/problem+json').send(problem);
  });
  proxyRoutes(app, proxy);
  return app;
}
