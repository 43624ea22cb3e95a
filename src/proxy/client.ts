import type { VaultStats } from '../vault/api.ts';
import type { CloneView, ExportView, JobView, Proxy, ProxyStatus, ReachView } from './port.ts';
import type { Mtree, Saveset } from '../vault/api.ts';
import type { CallArguments, CallName } from './wire.ts';

/** Posts a JSON body and answers the parsed one; rejects with the problem as a RouseError. */
export type Post = (path: string, body: unknown, timeoutMs: number) => Promise<unknown>;

/** Most calls answer in milliseconds; opening a clone on a busy disk may take seconds. */
const callTimeoutMs = 60_000;

/** The server's view of a proxy in another process. */
export function proxyClient(post: Post): Proxy {
  // What comes back was made by routes.ts of the same release: both ends share the port's types.
  const call = async <T>(
    name: CallName,
    args: CallArguments<CallName> | object,
    timeoutMs = callTimeoutMs,
  ): Promise<T> => {
    const answer = (await post(`/v1/proxy/${name}`, args, timeoutMs)) as { value: T };
    return answer.value;
  };
  const bytes = async (name: CallName, args: object) => {
    const { base64 } = await call<{ base64: string }>(name, args);
    return Buffer.from(base64, 'base64');
  };
  return {
    status: () => call<ProxyStatus>('status', {}),
    savesets: () => call<Saveset[]>('savesets', {}),
    saveset: (id) => call<Saveset>('saveset', { id }),
    readSavesetFile: (savesetId, name) => bytes('readSavesetFile', { savesetId, name }),
    createClone: (spec) => call<CloneView>('createClone', spec),
    clones: () => call<CloneView[]>('clones', {}),
    deleteClone: async (cloneId) => void (await call('deleteClone', { cloneId })),
    writeCloneFile: async (cloneId, path, content) => {
      const base64 = Buffer.from(content).toString('base64');
      await call('writeCloneFile', { cloneId, path, base64 });
    },
    readCloneFile: (cloneId, path) => bytes('readCloneFile', { cloneId, path }),
    createExport: (spec) => call<ExportView>('createExport', spec),
    exports: () => call<ExportView[]>('exports', {}),
    deleteExport: async (path) => void (await call('deleteExport', { path })),
    startJob: (spec) => call<JobView>('startJob', { spec }),
    job: (id, waitMs = 0, version = 0) =>
      call<JobView>('job', { id, waitMs, version }, callTimeoutMs + waitMs),
    cancelJob: async (id) => void (await call('cancelJob', { id })),
    vaultStats: () => call<VaultStats>('vaultStats', {}),
    mtrees: () => call<Mtree[]>('mtrees', {}),
    createMtree: (name, codec) => call<Mtree>('createMtree', { name, codec }),
    reach: (addresses) => call<ReachView[]>('reach', { addresses }),
  };
}
