import type { Clock } from '../lib/clock.ts';
import type { Files } from '../lib/files.ts';
import type { Random } from '../lib/random.ts';
import type { VaultDisk } from '../vault/api.ts';
import type { TimeSource } from './time-source.ts';

/** What a write layer is given: its disks, and the parts of the world that tests replace. */
export interface LayerDisk {
  readonly sizeBytes: number;
  readonly base: VaultDisk;
}

export interface LayerSurroundings {
  readonly files: Files;
  readonly clock: Clock;
  readonly random: Random;
  readonly times: TimeSource;
  /** Changes whenever the machine boots: /proc/sys/kernel/random/boot_id. */
  readonly bootId: string;
  /** A range could not be read, or written bytes are missing. */
  readonly onDamage: (disk: number, offset: number, message: string) => void;
  /** Whether bytes outside the layer that share its verifier were answered and not synced. */
  readonly unsyncedElsewhere?: () => boolean;
  /** Other bounds than `datastoreLimits`, for tests: small ones show in seconds what takes days. */
  readonly tuning?: Partial<LayerTuning>;
}

export interface LayerTuning {
  readonly segmentBytes: number;
  readonly garbageBytesMin: number;
  readonly checkpointEveryBytes: number;
  readonly reserveBytes: number;
  readonly quietMs: number;
  readonly prewriteBytes: number;
}
