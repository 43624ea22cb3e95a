import type { FastifyInstance } from 'fastify';
import { RouseError } from '../errors.ts';
import type { Proxy } from './port.ts';
import { type CallArguments, type CallName, calls } from './wire.ts';

type Handlers = {
  readonly [Name in CallName]: (args: CallArguments<Name>) => Promise<unknown>;
};

function handlersOf(proxy: Proxy): Handlers {
  return {
    status: () => proxy.status(),
    savesets: () => proxy.savesets(),
    saveset: ({ id }) => proxy.saveset(id),
    readSavesetFile: async ({ savesetId, name }) => ({
      base64: (await proxy.readSavesetFile(savesetId, name)).toString('base64'),
    }),
    createClone: (spec) => proxy.createClone(spec),
    clones: () => proxy.clones(),
    deleteClone: ({ cloneId }) => proxy.deleteClone(cloneId),
    writeCloneFile: ({ cloneId, path, base64 }) =>
      proxy.writeCloneFile(cloneId, path, Buffer.from(base64, 'base64')),
    readCloneFile: async ({ cloneId, path }) => ({
      base64: (await proxy.readCloneFile(cloneId, path)).toString('base64'),
    }),
    createExport: (spec) => proxy.createExport(spec),
    exports: () => proxy.exports(),
    deleteExport: ({ path }) => proxy.deleteExport(path),
    startJob: ({ spec }) => proxy.startJob(spec),
    job: ({ id, waitMs, version }) => proxy.job(id, waitMs, version),
    cancelJob: ({ id }) => proxy.cancelJob(id),
    vaultStats: () => proxy.vaultStats(),
    mtrees: () => proxy.mtrees(),
    createMtree: ({ name, codec }) => proxy.createMtree(name, codec),
    reach: ({ addresses }) => proxy.reach(addresses),
  };
}

/** The proxy's HTTP face: `POST /v1/proxy/<call>`. */
export function proxyRoutes(app: FastifyInstance, proxy: Proxy): void {
  const handlers = handlersOf(proxy);
  for (const name of Object.keys(calls) as CallName[]) {
    app.post(`/v1/proxy/${name}`, async (request) => {
      const value = await dispatch(handlers, name, request.body ?? {});
      return { value: value ?? null };
    });
  }
}

function dispatch<Name extends CallName>(
  handlers: Handlers,
  name: Name,
  body: unknown,
): Promise<unknown> {
  const parsed = calls[name].safeParse(body);
  if (!parsed.success) {
    throw new RouseError(
      'bad-request',
      `${name}: ${parsed.error.issues[0]?.message ?? 'invalid'}`,
      {
        advice: 'Server and proxy do not speak the same version: restart both.',
        details: { issues: parsed.error.issues.map((issue) => issue.path.join('.')) },
      },
    );
  }
  return handlers[name](parsed.data as CallArguments<Name>);
}
