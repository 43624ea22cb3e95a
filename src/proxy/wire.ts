import { z } from 'zod';
import { catalogLimits, proxyLimits } from '../limits.ts';
import type { BackupSource } from '../hypervisors/port.ts';
import type { JobSpec } from './port.ts';

/**
 * How server and proxy speak: `POST /v1/proxy/<call>` with a JSON object, answered by JSON or by a
 * problem (RFC 9457). Bytes travel as base64. One schema per call; both ends use this table.
 */
/** Grows when an older release would misread what a newer one says. */
export const wireVersion = 2;

const name = z.string().min(1).max(255);
const path = z.string().min(1).max(4096);
const time = z.number().int();
const machine = z.object({ id: name, name });

const backupSource = z.custom<BackupSource>(
  (value) =>
    z.looseObject({ token: name, disks: z.array(z.looseObject({ name })) }).safeParse(value)
      .success,
  'a backup source is expected',
);

const secret = z.string().min(1).max(4096);
const backupPass = z.object({
  url: path,
  trust: z.union([
    z.object({ fingerprint: name }),
    z.object({ authority: z.string().max(catalogLimits.authorityBytesMax) }),
  ]),
  session: z.union([z.object({ ticket: secret }), z.object({ cookie: secret })]),
});

const importDisk = z.object({ name, path, format: name.exactOptional() });
const restoreDisk = z.object({ name, path, format: z.enum(['raw', 'qcow2']) });

export const jobSpec: z.ZodType<JobSpec> = z.discriminatedUnion('kind', [
  z.object({
    kind: z.literal('backup'),
    id: name,
    mtree: name,
    machine,
    source: backupSource,
    baseSavesetId: name.exactOptional(),
    takenAtMs: time,
    pass: backupPass.exactOptional(),
  }),
  z.object({
    kind: z.literal('import'),
    id: name,
    mtree: name,
    machine,
    disks: z.array(importDisk).min(1),
    configuration: path.exactOptional(),
    nvram: path.exactOptional(),
    takenAtMs: time,
  }),
  z.object({ kind: z.literal('seal'), id: name, cloneId: name, takenAtMs: time }),
  z.object({
    kind: z.literal('restore'),
    id: name,
    savesetId: name,
    disks: z.array(restoreDisk).min(1),
  }),
  z.object({ kind: z.literal('verify'), id: name, savesetId: name.exactOptional() }),
  z.object({ kind: z.literal('rescan'), id: name }),
]);

const nothing = z.object({});

/** Arguments of each call by name. */
export const calls = {
  status: nothing,
  savesets: nothing,
  saveset: z.object({ id: name }),
  readSavesetFile: z.object({ savesetId: name, name }),
  createClone: z.object({ cloneId: name, mtree: name, savesetId: name, folder: name }),
  clones: nothing,
  deleteClone: z.object({ cloneId: name }),
  writeCloneFile: z.object({ cloneId: name, path, base64: z.base64() }),
  readCloneFile: z.object({ cloneId: name, path }),
  createExport: z.object({ cloneId: name, clients: z.array(name).min(1) }),
  exports: nothing,
  deleteExport: z.object({ path }),
  startJob: z.object({ spec: jobSpec }),
  job: z.object({ id: name, waitMs: z.number(), version: z.number() }),
  cancelJob: z.object({ id: name }),
  vaultStats: nothing,
  mtrees: nothing,
  createMtree: z.object({ name, codec: z.enum(['lz4', 'zstd']) }),
  reach: z.object({ addresses: z.array(z.union([z.ipv4(), z.ipv6()])).max(proxyLimits.reachMax) }),
} as const;

export type CallName = keyof typeof calls;
export type CallArguments<Name extends CallName> = z.infer<(typeof calls)[Name]>;
