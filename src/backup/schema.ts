import { z } from 'zod';
import { absolutePath, bytes, failure, flag, list, named } from '../lib/fields.ts';
import { newName, reference, timeMs } from '../lib/fields.ts';
import { backupLimits } from '../limits.ts';

/** What people say to and hear from a backup. See recovery/schema.ts for the conventions. */
const fileSource = z.strictObject({
  name: newName.describe('Name of the machine that these files are.'),
  disks: z
    .array(
      z.strictObject({
        path: absolutePath,
        name: newName.optional(),
        format: z
          .enum(['raw', 'qcow2', 'vmdk'], 'must be raw, qcow2 or vmdk')
          .optional()
          .describe('Found out from the file when missing.'),
      }),
      'must be a list of disks',
    )
    .min(1, 'must hold at least one disk')
    .max(backupLimits.disksMax, `must be at most ${backupLimits.disksMax} disks`),
  configuration: absolutePath.optional().describe('libvirt XML or .vmx.'),
  nvram: absolutePath.optional(),
});

/** One object on the wire; the service gets one of two kinds. */
export const backupRequest = z
  .strictObject({
    machine: reference.optional().describe('A machine of a hypervisor.'),
    hypervisor: reference.optional().describe('Needed when two hypervisors have that machine.'),
    full: flag.optional().describe('Read everything, although an incremental would do.'),
    files: fileSource.optional().describe('Or: disks in files.'),
    mtree: reference.optional(),
    proxy: reference.optional().describe('That reads and stores it; the one beside the server.'),
  })
  .transform((request, context): BackupRequest => {
    const { machine, files, hypervisor, full, mtree, proxy } = request;
    const wrong = (path: string, message: string) => {
      context.addIssue({ code: 'custom', path: [path], message });
      return z.NEVER;
    };
    if (machine !== undefined && files !== undefined) {
      return wrong('files', 'cannot be given together with machine');
    }
    if (machine !== undefined) {
      return { kind: 'machine', machine, hypervisor, full: full ?? false, mtree, proxy };
    }
    if (files === undefined) return wrong('machine', 'is missing: name a machine, or give files');
    if (hypervisor !== undefined) return wrong('hypervisor', 'is for a machine, not for files');
    if (full !== undefined) return wrong('full', 'is for a machine: files are always read whole');
    return { kind: 'files', files, mtree, proxy };
  });
export type BackupRequestInput = z.input<typeof backupRequest>;

export type BackupRequest =
  | {
      readonly kind: 'machine';
      readonly machine: string;
      readonly hypervisor: string | undefined;
      readonly full: boolean;
      readonly mtree: string | undefined;
      readonly proxy: string | undefined;
    }
  | {
      readonly kind: 'files';
      readonly files: z.output<typeof fileSource>;
      readonly mtree: string | undefined;
      readonly proxy: string | undefined;
    };

export const backupState = z.enum(['running', 'done', 'failed', 'cancelled']);

export const backup = z.object({
  id: z.string(),
  machine: named,
  hypervisor: z.string().nullable(),
  mtree: z.string(),
  state: backupState,
  kind: z.enum(['full', 'incremental']).nullable().describe('null: not yet known.'),
  fullBecause: z.string().nullable().describe('Why it is full although it could be incremental.'),
  consistency: z.enum(['crash', 'filesystem', 'offline']).nullable(),
  waitsFor: z
    .string()
    .nullable()
    .describe('The full place, or who is out of reach; null: it waits for nobody.'),
  doneBytes: bytes,
  totalBytes: bytes,
  newBytes: bytes.describe('Read and not in the vault before.'),
  knownBytes: bytes.describe('Read and already in the vault.'),
  bytesPerSecond: z.number(),
  etaMs: z.number().nullable().describe('Milliseconds from now until its end.'),
  savesetId: z.string().nullable(),
  startedMs: timeMs,
  endedMs: timeMs.nullable(),
  warnings: list(z.string()),
  error: failure.nullable(),
});
export type Backup = z.infer<typeof backup>;

export const backupFilter = z.strictObject({
  machine: reference.optional(),
  state: backupState.optional(),
});
export type BackupFilter = z.output<typeof backupFilter>;

/** `reference`: a backup's id, or the name of its machine (the newest backup of it). */
export interface BackupService {
  /** Refuses with `busy` when a backup of that machine runs. */
  start(request: BackupRequest): Promise<Backup>;
  /** Newest first. */
  list(filter: BackupFilter): Promise<readonly Backup[]>;
  get(reference: string): Promise<Backup>;
  /** Resolves once it has stopped. What was stored is reused next time. */
  cancel(reference: string): Promise<Backup>;
  /** The view as it is, then its changes (at most a few a second), until it has ended. */
  watch(reference: string, signal: AbortSignal): AsyncIterable<Backup>;
}

/** Names in the OpenAPI document. */
z.globalRegistry.add(backupRequest, { id: 'BackupRequest' });
z.globalRegistry.add(backup, { id: 'Backup' });
