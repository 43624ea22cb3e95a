import { RouseError } from '../errors.ts';
import type { Recoveries } from '../catalog/recoveries.ts';
import type { Hypervisor } from '../hypervisors/port.ts';
import type { Clock } from '../lib/clock.ts';
import type { Random } from '../lib/random.ts';
import type { Engine, Json, RunView } from '../workflows/api.ts';
import type { Placement, ReachableProxy } from '../placement/port.ts';
import type { RecoveryInput } from './plan.ts';

/** The parts of a recovery that are runs of their own. */
export type Part = 'open' | 'flr' | 'restore' | 'relocate' | 'park' | 'close';

/** The run that begins a recovery: steps 1 to 11. */
export function openingOf({ mode, isMoved }: Pick<RecoveryInput, 'mode' | 'isMoved'>): Part {
  if (mode === 'flr') return 'flr';
  return mode === 'new' && isMoved === true ? 'restore' : 'open';
}

const openings: readonly string[] = ['recovery.open', 'recovery.flr', 'recovery.restore'];

export function isOpening({ kind }: Pick<RunView, 'kind'>): boolean {
  return openings.includes(kind);
}

/** Submits the next run of that part: `<recovery>.<part>.<number>`. */
export async function submitNext(
  { engine }: Pick<RecoveryWorld, 'engine'>,
  recoveryId: string,
  part: Part,
  input: Json,
): Promise<RunView> {
  const kind = `recovery.${part}`;
  const { length } = await engine.runs({ subject: recoveryId, kind });
  return engine.submit(kind, recoveryId, input, `${recoveryId}.${part}.${length + 1}`);
}

/** What the steps of a recovery act on, passed in by main.ts. */
export interface RecoveryWorld {
  readonly clock: Clock;
  readonly random: Random;
  readonly engine: Engine;
  /** A change of the row and the run or timer that follows from it are one commit. */
  transaction<T>(work: () => Promise<T>): Promise<T>;
  readonly recoveries: Recoveries;
  /** The device that holds a saveset: which proxy reaches it, and where it lies. */
  device(
    savesetId: string,
  ): Promise<{ readonly id: string; readonly name: string; readonly address: string }>;
  /** Every proxy, those that are away as well. */
  proxies(): Promise<readonly ReachableProxy[]>;
  readonly placement: Placement;
  hypervisor(id: string): Promise<Hypervisor>;
  hypervisorName(id: string): Promise<string>;
  /** A line in the log of events, and for those who watch. */
  tell(
    recoveryId: string,
    level: 'info' | 'warning' | 'error',
    kind: string,
    message: string,
  ): Promise<void>;
  /** Keeps the machine's last picture. */
  keepPicture(recoveryId: string, png: Buffer): Promise<void>;
}

/**
 * The proxy that this recovery was given in step 2: what lies there is found nowhere else. Throws
 * `proxy-unreachable` when none was chosen, `not-found` when it was removed since.
 */
export async function proxyOf(world: RecoveryWorld, recoveryId: string): Promise<ReachableProxy> {
  const { proxy: name, proxyAddress } = await world.recoveries.get(recoveryId);
  if (name === null) {
    throw new RouseError('proxy-unreachable', `no proxy was chosen for recovery ${recoveryId}`);
  }
  const proxy = (await world.proxies()).find((known) => known.name === name);
  if (proxy === undefined) {
    throw new RouseError('not-found', `proxy ${name} was removed, and holds what this needs`, {
      advice: `Enrol it again under its name: rouse proxy token --name ${name}`,
    });
  }
  return proxyAddress === null ? proxy : { ...proxy, address: proxyAddress };
}
