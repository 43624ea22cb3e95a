import type { Recoveries } from '../catalog/recoveries.ts';
import type { Hypervisor } from '../hypervisors/port.ts';
import type { Clock } from '../lib/clock.ts';
import type { Random } from '../lib/random.ts';
import type { Engine, Json, RunView } from '../workflows/api.ts';
import type { ReachableProxy } from './plan.ts';

/** The parts of a recovery that are runs of their own. */
export type Part = 'open' | 'relocate' | 'park' | 'close';

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
  device(savesetId: string): Promise<{ readonly name: string; readonly address: string }>;
  proxies(): readonly ReachableProxy[];
  hypervisor(id: string): Promise<Hypervisor>;
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
