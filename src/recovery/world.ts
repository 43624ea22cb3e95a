import type { Recoveries } from '../catalog/recoveries.ts';
import type { Hypervisor } from '../hypervisors/port.ts';
import type { Clock } from '../lib/clock.ts';
import type { Random } from '../lib/random.ts';
import type { Engine } from '../workflows/api.ts';
import type { ReachableProxy } from './plan.ts';

/** What the steps of a recovery act on, passed in by main.ts. */
export interface RecoveryWorld {
  readonly clock: Clock;
  readonly random: Random;
  readonly engine: Engine;
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
