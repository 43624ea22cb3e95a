import * as fs from 'node:fs';
import Fastify, { type FastifyInstance } from 'fastify';
import { toRouseError } from '../errors.ts';
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
  const app = Fastify({ bodyLimit: proxyLimits.requestBytesMax });
  app.setErrorHandler(async (thrown, request, reply) => {
    const error = toRouseError(thrown, request.url);
    if (error.code === 'internal') onError(thrown, request.url);
    const problem = error.toProblem();
    await reply.code(problem.status).type('application/problem+json').send(problem);
  });
  proxyRoutes(app, proxy);
  fs.rmSync(socket, { force: true });
  await app.listen({ path: socket });
  fs.chmodSync(socket, 0o600);
  return app;
}
