import { libvirtLimits } from '../../limits.ts';
import type { LibvirtContext } from './context.ts';
import { blockStats, parseStats } from './domain.ts';

/**
 * Keeps a relocation out of its guest's way: once a second the mean time of the guest's own
 * requests is looked at. Above the bound the copy's speed is halved; below half of it, it grows by
 * a quarter. A speed given by a person is kept as it is.
 */
export class GuestThrottle {
  readonly #context: LibvirtContext;
  readonly #machine: string;
  readonly #isFixed: boolean;
  #bytesPerSecond: number;
  #last: { readonly requests: number; readonly nanoseconds: number } | undefined;

  constructor(context: LibvirtContext, machine: string, wanted: number) {
    this.#context = context;
    this.#machine = machine;
    this.#isFixed = wanted > 0;
    this.#bytesPerSecond = wanted > 0 ? wanted : libvirtLimits.relocateBytesPerSecondStart;
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  async adjust(disk: string): Promise<void> {
    if (this.#isFixed) return;
    const latencyMs = await this.#latencyMs();
    const next = nextBandwidth(this.#bytesPerSecond, latencyMs);
    if (next === this.#bytesPerSecond) return;
    this.#bytesPerSecond = next;
    const values = ['blockjob', this.#machine, disk, '--bytes', String(next)];
    // The job may have ended since; the next look at it tells.
    await this.#context.virsh.runUnless(/./u, values);
  }

  /** Of the requests since the last look; undefined without any. */
  async #latencyMs(): Promise<number | undefined> {
    const said = await this.#context.virsh.run(['domstats', '--block', this.#machine]);
    const blocks = blockStats([...parseStats(said).values()][0] ?? new Map<string, string>());
    let requests = 0;
    let nanoseconds = 0;
    for (const block of blocks.values()) {
      requests += block.requests;
      nanoseconds += block.nanoseconds;
    }
    const last = this.#last;
    this.#last = { requests, nanoseconds };
    if (last === undefined || requests <= last.requests) return undefined;
    return (nanoseconds - last.nanoseconds) / (requests - last.requests) / 1e6;
  }
}

export function nextBandwidth(current: number, latencyMs: number | undefined): number {
  const { relocateBytesPerSecondMin: least, relocateBytesPerSecondMax: most } = libvirtLimits;
  if (latencyMs !== undefined && latencyMs > libvirtLimits.guestLatencyMsMax) {
    return Math.max(Math.floor(current / 2), least);
  }
  if (latencyMs === undefined || latencyMs < libvirtLimits.guestLatencyMsMax / 2) {
    return Math.min(Math.floor(current * 1.25), most);
  }
  return current;
}
