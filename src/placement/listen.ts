import Fastify, { type FastifyServerOptions } from 'fastify';
import type { z } from 'zod';
import { RouseError, toRouseError } from '../errors.ts';
import type { Identity } from '../lib/identity.ts';
import { peerOf, secureServer } from '../lib/secure-server.ts';
import { linkLimits } from '../proxy/link-limits.ts';
import { enrolCall, heartbeatCall, renewCall } from '../proxy/link-wire.ts';
import type { Enrolment } from './enrolment.ts';

export interface LinkListener {
  readonly port: number;
  show(identity: Identity): void;
  close(): Promise<void>;
}

/**
 * The server's TLS listener, for proxies of other machines: joining needs a token, everything else
 * a certificate that this server gave and still knows. Nothing of the API is to be had here.
 */
export async function listenForProxies(
  enrolment: Enrolment,
  at: { readonly port: number; readonly host: string; readonly identity: Identity },
  onError: (error: unknown, call: string) => void,
): Promise<LinkListener> {
  const server = secureServer(at.identity, true);
  const options: FastifyServerOptions = {
    bodyLimit: linkLimits.linkBytesMax,
    requestTimeout: linkLimits.heartbeatTimeoutMs,
    forceCloseConnections: true,
    serverFactory: server.factory,
  };
  const app = Fastify(options);
  app.setErrorHandler(async (thrown, request, reply) => {
    const error = toRouseError(thrown, request.url);
    if (error.code === 'internal') onError(thrown, request.url);
    const problem = error.toProblem();
    await reply.code(problem.status).type('application/problem+json').send(problem);
  });
  app.post('/v1/link/enrol', async ({ body }) => enrolment.enrol(checked(enrolCall, body)));
  app.post('/v1/link/heartbeat', async ({ raw, body }) =>
    enrolment.heartbeat(peerOf(raw), checked(heartbeatCall, body)),
  );
  app.post('/v1/link/renew', async ({ raw, body }) =>
    enrolment.renew(peerOf(raw), checked(renewCall, body).request),
  );
  try {
    await app.listen({ port: at.port, host: at.host });
  } catch (error) {
    throw toRouseError(error, `--tls-port ${at.port}`);
  }
  return {
    port: server.port(),
    show: (identity) => server.show(identity),
    close: () => app.close(),
  };
}

function checked<T extends z.ZodType>(schema: T, body: unknown): z.output<T> {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const where = issue?.path.join('.') ?? '';
  throw new RouseError('bad-request', `${where}: ${issue?.message ?? 'is wrong'}`, {
    advice: 'Server and proxy do not speak the same version: update both.',
  });
}
