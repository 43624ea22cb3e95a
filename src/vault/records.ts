import { z } from 'zod';
import type { BlobStore } from '../blobs/port.ts';
import { isRouseError, RouseError } from '../errors.ts';
import type { Mtree, Saveset } from './api.ts';
import { names } from './format.ts';
import { openJson, sealJson } from './sealed-json.ts';

/** Savesets and mtrees as sealed JSON in the store (docs/format.md, "Records"). */
const count = z.number().int().nonnegative();

const diskRoot = z.object({
  hash: z.string().regex(/^([0-9a-f]{64})?$/),
  depth: count.max(64),
  sizeBytes: count,
});

const savesetRecord = z.object({
  format: z.literal('rouse-saveset'),
  version: z.number().int().positive(),
  id: z.string().min(1),
  mtree: z.string().min(1),
  machine: z.object({ id: z.string(), name: z.string() }),
  takenAtMs: z.number(),
  kind: z.enum(['full', 'incremental', 'sealed']),
  basedOn: z.string().exactOptional(),
  consistency: z.enum(['crash', 'filesystem', 'offline']),
  disks: z.array(
    z.object({
      name: z.string(),
      root: diskRoot,
      source: z.string(),
      referencedBytes: count.exactOptional(),
    }),
  ),
  files: z.array(
    z.object({ name: z.string(), root: diskRoot, referencedBytes: count.exactOptional() }),
  ),
  cost: z.object({
    readBytes: count,
    zeroBytes: count,
    knownBytes: count,
    newBytes: count,
    storedBytes: count,
  }),
  labels: z.record(z.string(), z.string()),
});

const mtreeRecord = z.object({
  format: z.literal('rouse-mtree'),
  version: z.number().int().positive(),
  name: z.string().min(1),
  codec: z.enum(['lz4', 'zstd']),
  createdMs: z.number(),
});

const recordVersion = 1;

export function encodeSaveset(saveset: Saveset): Buffer {
  return sealJson({ format: 'rouse-saveset', version: recordVersion, ...saveset });
}

export function encodeMtree(mtree: Mtree): Buffer {
  return sealJson({ format: 'rouse-mtree', version: recordVersion, ...mtree });
}

export function decodeSaveset(bytes: Buffer, where: string): Saveset {
  const { format: _format, version: _version, ...saveset } = parse(savesetRecord, bytes, where);
  return saveset;
}

export function decodeMtree(bytes: Buffer, where: string): Mtree {
  const { format: _format, version: _version, ...mtree } = parse(mtreeRecord, bytes, where);
  return mtree;
}

function parse<T extends z.ZodType<{ format: string; version: number }>>(
  schema: T,
  bytes: Buffer,
  where: string,
): z.infer<T> {
  const body = openJson(bytes, where);
  const version = z.object({ version: z.number() }).safeParse(body);
  if (version.success && version.data.version > recordVersion)
    throw new RouseError('newer-format', `${where} has format ${version.data.version}`);
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  throw new RouseError('corrupt-data', `${where} is damaged: ${z.prettifyError(parsed.error)}`);
}

/** All records below a folder; what cannot be read is told in sentences, and left out. */
export async function readRecords<T>(
  store: BlobStore,
  folder: string,
  decode: (bytes: Buffer, where: string) => T,
): Promise<{ records: T[]; problems: string[] }> {
  const records: T[] = [];
  const problems: string[] = [];
  for (const blob of await store.list(folder)) {
    try {
      records.push(decode(await store.get(blob.name), blob.name));
    } catch (error) {
      if (!isRouseError(error)) throw error;
      problems.push(error.message);
    }
  }
  return { records, problems };
}

const mtreeName = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

export function checkMtreeName(name: string): void {
  if (!mtreeName.test(name))
    throw new RouseError(
      'bad-request',
      `"${name}" is no name of an mtree: up to 64 letters, digits, dots, dashes, underscores`,
    );
}

/** Ids come from people too. */
export function savesetBlob(id: string): string {
  if (!/^[A-Za-z0-9_-]{1,64}$/.test(id))
    throw new RouseError('not-found', `there is no saveset ${id}`);
  return names.saveset(id);
}
