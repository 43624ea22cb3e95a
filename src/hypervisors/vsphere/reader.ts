import type { Clock } from '../../lib/clock.ts';
import type { Extent } from '../../lib/disk.ts';
import type {
  BackupDiskSource,
  BackupLease,
  BackupPass,
  BackupReader,
  ChangedDisk,
  FolderAccess,
  NfcAccess,
} from '../port.ts';
import { ChangedAreas } from './changed-areas.ts';
import { VimClient } from './client.ts';
import { machineRef } from './inventory.ts';
import { openLease } from './lease.ts';
import { readRange } from './ranges.ts';

/**
 * The proxy's half of a backup: disks are read where the proxy is, in a session that its pass opens
 * and that ends with it. It knows no password; nothing is sent to a peer that is not the one that
 * the pass names.
 */
export class VsphereReader implements BackupReader {
  readonly #pass: BackupPass;
  readonly #client: VimClient;
  readonly #silenceMs: number | undefined;

  constructor(pass: BackupPass, clock: Clock, tuning: { readonly silenceMs?: number } = {}) {
    const { url, trust, session } = pass;
    this.#pass = pass;
    this.#silenceMs = tuning.silenceMs;
    this.#client = new VimClient({
      url,
      trust,
      clock,
      user: '',
      password: async () => '',
      pass: session,
    });
  }

  lease(disks: readonly NfcAccess[], signal: AbortSignal): Promise<BackupLease> {
    const { url, trust } = this.#pass;
    const silence = this.#silenceMs === undefined ? {} : { silenceMs: this.#silenceMs };
    const managerUrl = new URL(url);
    return openLease({ client: this.#client, trust, managerUrl, signal, ...silence }, disks);
  }

  folderDisk(disk: BackupDiskSource, access: FolderAccess, signal: AbortSignal): ChangedDisk {
    const client = this.#client;
    const { name, sizeBytes } = disk;
    const { machine, snapshot, key, changeId, path } = access;
    const question = {
      machine: machineRef(machine),
      snapshot: { type: 'VirtualMachineSnapshot', id: snapshot },
      ...{ key, name, sizeBytes, changeId },
    };
    const areas = new ChangedAreas(client, question, signal);
    return {
      sizeBytes,
      read: (target, offset) => readRange(client, path, { offset, sizeBytes }, target, signal),
      // Nothing tells holes: what is zero is found by reading it.
      extents: async (offset, length): Promise<readonly Extent[]> => [
        { offset, length, zero: false },
      ],
      changes: (offset, length) => areas.within(offset, length),
      close: async () => undefined,
    };
  }

  close(): Promise<void> {
    return this.#client.close();
  }
}
