/** `clone.json`: what a clone is, written once. */
import { RouseError } from '../errors.ts';
import type { Files } from '../lib/files.ts';
import type { DiskRoot } from '../vault/api.ts';

export interface CloneRecord {
  readonly format: 1;
  readonly cloneId: string;
  readonly mtree: string;
  readonly savesetId: string;
  /** The machine's folder in the export. */
  readonly folder: string;
  readonly disks: readonly {
    readonly name: string;
    readonly root: DiskRoot;
    /** What its files are called (disk-names.ts); in older clones as the disk. */
    readonly file?: string;
  }[];
  /** Configuration files of the saveset, as they are named in the folder. */
  readonly files: readonly string[];
  /** fattr3.fsid, decimal. */
  readonly fsid: string;
  readonly generation: number;
  /** Hex of 32 bytes: the key of the export's file handles. */
  readonly handleSecret: string;
  readonly createdMs: number;
}

export const recordName = 'clone.json';

export async function writeRecord(
  files: Files,
  directory: string,
  record: CloneRecord,
): Promise<void> {
  const file = await files.open(`${directory}/${recordName}`, 'write');
  await file.write([Buffer.from(`${JSON.stringify(record, undefined, 2)}\n`)], 0);
  await file.sync();
  await file.close();
}

/** undefined: there is no such clone. */
export async function readRecord(
  files: Files,
  directory: string,
): Promise<CloneRecord | undefined> {
  const path = `${directory}/${recordName}`;
  if ((await files.stat(path)) === undefined) return undefined;
  const file = await files.open(path, 'read');
  const bytes = Buffer.alloc(await file.size());
  await file.read(bytes, 0);
  await file.close();
  return parse(bytes.toString(), path);
}

function parse(text: string, path: string): CloneRecord {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new RouseError('corrupt-data', `${path}: not readable`, { cause: error });
  }
  if (typeof value !== 'object' || value === null || !('format' in value)) {
    throw new RouseError('corrupt-data', `${path}: not the record of a clone`);
  }
  if (value.format !== 1) {
    throw new RouseError('newer-format', `${path} was written by a newer Rouse`);
  }
  return value as CloneRecord;
}
