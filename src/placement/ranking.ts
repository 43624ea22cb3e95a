import type { ProxyRow } from '../catalog/proxies.ts';
import { isRouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import { proxyLimits } from '../limits.ts';
import type { Proxies as ProxyRows } from '../catalog/proxies.ts';
import type { Candidate, PastMount, Placement, PlacementQuestion } from './port.ts';
import type { ProxyFacts, Reach } from './port.ts';
import { addressesOf, problemOf, type ProxyRegistry } from './registry.ts';
import { rankCandidates } from './scoring.ts';

export interface RankingDesk {
  readonly clock: Clock;
  readonly rows: ProxyRows;
  readonly registry: ProxyRegistry;
  activeRecoveries(): Promise<
    readonly { readonly machineId: string; readonly proxy: string | null }[]
  >;
}

/** Gathers what is known of the proxies, asks them what they reach, and ranks. */
export class Ranking implements Placement {
  readonly #desk: RankingDesk;

  constructor(desk: RankingDesk) {
    this.#desk = desk;
  }

  async rank(question: PlacementQuestion): Promise<readonly Candidate[]> {
    const { rows, registry, activeRecoveries } = this.#desk;
    const known = await registry.rows();
    const active = await activeRecoveries();
    const warm = active.filter(({ machineId }) => machineId === question.machineId);
    const hypervisorId = question.hosts[0]?.hypervisor?.id;
    return rankCandidates({
      ...question,
      proxies: known.map((row) =>
        this.#factsOf(
          row,
          warm.some(({ proxy }) => proxy === row.name),
        ),
      ),
      pastMounts: hypervisorId === undefined ? [] : await rows.mounts(hypervisorId),
      reach: await this.#reach(known, question),
    });
  }

  #factsOf(row: ProxyRow, isWarm: boolean): ProxyFacts {
    const { status } = row;
    return {
      name: row.name,
      state: this.#desk.registry.stateOf(row),
      problem: problemOf(row),
      addresses: addressesOf(row),
      networks: status?.networks ?? [],
      devices: row.devices,
      labels: row.labels,
      onlyFor: row.onlyFor,
      neverFor: row.neverFor,
      loadShare: Math.max(status?.load ?? 0, (status?.jobs ?? 0) / proxyLimits.jobsMax),
      freeShare: status === null ? 1 : status.space.freeBytes / status.space.totalBytes,
      isWarm,
    };
  }

  /** Only where there is a choice between proxies: a host that swallows it costs a moment. */
  async #reach(known: readonly ProxyRow[], question: PlacementQuestion): Promise<readonly Reach[]> {
    const { registry } = this.#desk;
    const usable = known.filter(
      (row) =>
        registry.stateOf(row) === 'connected' &&
        problemOf(row) === null &&
        row.devices.includes(question.device.id),
    );
    if (usable.length < 2) return [];
    const up = question.hosts.filter(({ state }) => state === 'connected');
    const addresses = [...new Set(up.flatMap((host) => host.addresses))];
    const asked = addresses.slice(0, proxyLimits.reachMax);
    const answers = await Promise.all(usable.map((row) => this.#ask(row, asked)));
    return answers.flat();
  }

  async #ask(row: ProxyRow, addresses: readonly string[]): Promise<readonly Reach[]> {
    try {
      const answers = await this.#desk.registry.calls(row).reach(addresses);
      return answers.map((answer) => ({ proxy: row.name, ...answer }));
    } catch (error) {
      // It proves nothing either way, and its heartbeats will tell.
      if (isRouseError(error)) return [];
      throw error;
    }
  }

  async mounted(past: Omit<PastMount, 'okMs' | 'failedMs'>): Promise<void> {
    await this.#desk.rows.mounted(past, this.#desk.clock.now());
  }
}
