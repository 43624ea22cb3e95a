import { RouseError } from '../errors.ts';
import type { Random } from '../lib/random.ts';
import { proxyLimits } from '../limits.ts';
import type { JobSpec, JobView, Proxy } from '../proxy/port.ts';
import type { Mtree, VaultStats } from '../vault/api.ts';
import type { MtreeRequest, VaultJob, VaultService, VerifyRequest } from './schema.ts';

export interface VaultDesk {
  readonly random: Random;
  proxy(): Promise<Proxy>;
  /** The id of the saveset that is meant. */
  savesetId(reference: string): Promise<string>;
  /** The vault's list of savesets may have changed: read it again. */
  refresh(): Promise<void>;
}

/** The vault as people ask for it; the work is the proxy's. */
export class VaultDoor implements VaultService {
  readonly #desk: VaultDesk;

  constructor(desk: VaultDesk) {
    this.#desk = desk;
  }

  async stats(): Promise<VaultStats> {
    return (await this.#desk.proxy()).vaultStats();
  }

  async mtrees(): Promise<readonly Mtree[]> {
    return (await this.#desk.proxy()).mtrees();
  }

  async createMtree(request: MtreeRequest): Promise<Mtree> {
    return (await this.#desk.proxy()).createMtree(request.name, request.codec);
  }

  async verify(request: VerifyRequest): Promise<VaultJob> {
    const { saveset } = request;
    const id = `verify.${this.#desk.random.id()}`;
    const spec: JobSpec =
      saveset === undefined
        ? { kind: 'verify', id }
        : { kind: 'verify', id, savesetId: await this.#desk.savesetId(saveset) };
    return jobView(await (await this.#desk.proxy()).startJob(spec));
  }

  async rescan(): Promise<VaultJob> {
    const id = `rescan.${this.#desk.random.id()}`;
    return jobView(await (await this.#desk.proxy()).startJob({ kind: 'rescan', id }));
  }

  async job(id: string): Promise<VaultJob> {
    return jobView(await (await this.#desk.proxy()).job(id));
  }

  async cancelJob(id: string): Promise<VaultJob> {
    await (await this.#desk.proxy()).cancelJob(id);
    return this.job(id);
  }

  async *watchJob(id: string, signal: AbortSignal): AsyncIterable<VaultJob> {
    let version = 0;
    while (!signal.aborted) {
      const view = await (await this.#desk.proxy()).job(id, proxyLimits.jobPollMs, version);
      if (view.version !== version) yield jobView(view);
      version = view.version;
      if (view.state !== 'running') {
        if (view.kind === 'rescan') await this.#desk.refresh();
        return;
      }
    }
  }
}

function jobView(view: JobView): VaultJob {
  if (view.kind !== 'verify' && view.kind !== 'rescan') {
    throw new RouseError('not-found', `${view.id} is a ${view.kind}, not a job of the vault`);
  }
  const { result } = view;
  return {
    id: view.id,
    kind: view.kind,
    state: view.state,
    startedMs: view.startedMs,
    endedMs: view.endedMs ?? null,
    doneBytes: view.doneBytes,
    totalBytes: view.totalBytes,
    verify: result?.kind === 'verify' ? result.report : null,
    rescan: result?.kind === 'rescan' ? result.report : null,
    error: view.error ?? null,
  };
}
