import type { RouseCommand } from './rouse-command.ts';
import type { SerialConsole } from './serial.ts';

/** Where the demo plays: a hypervisor with production storage and a guest on it. */
export interface Stage {
  /** SHA-256 of the guest's known file. */
  readonly knownSha256: string;
  /** Options of `rouse up`. */
  readonly upOptions: readonly string[];
  /** The machine web01 runs on production storage, Rouse knows its hypervisor, and backed it up. */
  prepare(rouse: RouseCommand): Promise<void>;
  /** web01 and its disk are destroyed. */
  lose(): Promise<void>;
  /** The serial ports of the machine that was woken. */
  serial(): Promise<SerialConsole>;
  /** Machines that still lie on the clone. */
  registrations(): Promise<number>;
  /** Ends the machine and its hypervisor. */
  end(): Promise<void>;
}
