import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';
import type { ReadableDisk } from '../lib/disk.ts';
import { ImageFile } from './image-file.ts';
import { probeFormat } from './probe.ts';
import type { DiskFormat } from './probe.ts';
import { readQcow2Header } from './qcow2-header.ts';
import { openQcow2 } from './qcow2.ts';
import { openRaw } from './raw.ts';
import { TableCache } from './table-cache.ts';
import { openVmdk } from './vmdk.ts';

/**
 * Disk images: files that hold a machine's disk in one of three formats, each read and given as a
 * `ReadableDisk`.
 *
 * - An *image* is one disk: one file, or a descriptor with extents, or an overlay and its chain.
 * - A *map* (mapped-disk.ts) says where each stretch of the disk comes from: zeros, a file, a
 *   compressed piece, the disk below. Formats are maps; reading and extents are written once.
 * - *Tables* are the mapping tables on disk, read in pages, one bounded cache for a whole chain.
 *
 * Invariants: nothing is believed before it was checked against the file's size; whatever the
 * bytes, the outcome is data or one RouseError; memory is bounded by formatLimits; ranges known to
 * be zero are never read. Reads of one disk may run in parallel; close only when none runs.
 */
export interface OpenedDisk extends ReadableDisk {
  readonly format: DiskFormat;
  readonly path: string;
  /** Files the disk is read from, the named one first: what a person has to keep together. */
  readonly files: readonly string[];
}

export interface OpenDiskOptions {
  /** As a domain's XML says it. Without: found out by content, and raw if nothing else fits. */
  readonly format?: string;
}

/**
 * Opens a disk image for reading. A raw disk of a machine one does not trust should be opened with
 * its format named: its owner can write any header into it.
 */
export async function openDisk(file: string, options: OpenDiskOptions = {}): Promise<OpenedDisk> {
  const chain: Chain = { tables: new TableCache(), files: [], identities: new Map() };
  const format = options.format === undefined ? undefined : knownFormat(options.format, file);
  const image = await openImage(file, format, chain, true);
  const { disk } = image;
  return {
    format: image.format,
    path: file,
    files: chain.files,
    sizeBytes: disk.sizeBytes,
    read: (target, offset) => disk.read(target, offset),
    extents: (offset, length) => disk.extents(offset, length),
    close: () => disk.close(),
  };
}

interface Chain {
  readonly tables: TableCache;
  readonly files: string[];
  /** Path by identity of every file on the way down: a second visit is a loop. */
  readonly identities: Map<string, string>;
}

interface Image {
  readonly disk: ReadableDisk;
  readonly format: DiskFormat;
  readonly contentId: string | undefined;
}

function knownFormat(format: string, file: string): DiskFormat {
  if (format === 'raw' || format === 'qcow2' || format === 'vmdk') return format;
  throw new RouseError('unsupported-format', `${file}: the format ${format} cannot be read`, {
    advice: 'Convert it first: qemu-img convert -O qcow2 OLD NEW.',
  });
}

/** `trusted`: the format was not guessed by us for a file that another one refers to. */
async function openImage(
  name: string,
  format: DiskFormat | undefined,
  chain: Chain,
  trusted: boolean,
): Promise<Image> {
  const file = await ImageFile.open(name);
  try {
    enter(file, chain);
    const found = format ?? (await probeFormat(file));
    switch (found) {
      case 'raw':
        return { disk: openRaw(file, chain.tables), format: found, contentId: undefined };
      case 'qcow2':
        return {
          disk: await openOverlay(file, chain, trusted),
          format: found,
          contentId: undefined,
        };
      case 'vmdk': {
        const openParent = (hint: string, child: ImageFile) => {
          if (!trusted) throw guessedChain(child);
          return openBacking(child, hint, 'vmdk', chain);
        };
        const vmdk = await openVmdk(file, { tables: chain.tables, openParent });
        return { ...vmdk, format: found };
      }
    }
  } catch (error) {
    await file.close();
    throw error;
  }
}

function enter(file: ImageFile, chain: Chain): void {
  const seen = chain.identities.get(file.identity);
  if (seen !== undefined) {
    throw new RouseError('corrupt-data', `${file.path}: its backing files form a loop at ${seen}`, {
      advice: 'Correct the backing file with qemu-img rebase -u.',
    });
  }
  if (chain.files.length >= formatLimits.chainDepthMax) {
    throw new RouseError(
      'unsupported-format',
      `${file.path}: more than ${formatLimits.chainDepthMax} backing files below one disk`,
      { advice: 'Shorten the chain with qemu-img rebase or commit.' },
    );
  }
  chain.identities.set(file.identity, file.path);
  chain.files.push(file.path);
}

async function openOverlay(file: ImageFile, chain: Chain, trusted: boolean): Promise<ReadableDisk> {
  const header = await readQcow2Header(file);
  if (!trusted && (header.backingFile !== undefined || header.hasDataFile)) {
    throw guessedChain(file);
  }
  let dataFile: ImageFile | undefined;
  try {
    if (header.hasDataFile) dataFile = await openDataFile(file, header.dataFile);
    const backing =
      header.backingFile === undefined
        ? undefined
        : await openBacking(file, header.backingFile, header.backingFormat, chain);
    return openQcow2({ file, header, backing: backing?.disk, dataFile, tables: chain.tables });
  } catch (error) {
    await dataFile?.close();
    throw error;
  }
}

/**
 * Without the format of a backing file written down, its content decides; but a raw disk's content
 * is its guest's to choose. So a guessed file may not refer to further files (as libvirt has it).
 */
function guessedChain(file: ImageFile): RouseError {
  return new RouseError(
    'unsupported-format',
    `${file.path}: it refers to further files, but the image above it does not say its format`,
    { advice: 'If it is right, write the format down: qemu-img rebase -u -b BASE -F qcow2 TOP.' },
  );
}

async function openBacking(
  file: ImageFile,
  name: string,
  format: string | undefined,
  chain: Chain,
): Promise<Image> {
  const target = backingTarget(file, name);
  const stated = format === undefined || format === '' ? target.format : format;
  const known = stated === undefined ? undefined : knownFormat(stated, target.path);
  try {
    return await openImage(target.path, known, chain, known !== undefined);
  } catch (error) {
    if (error instanceof RouseError && error.code === 'not-found' && !(await exists(target.path))) {
      throw missing(file, target.path, 'backing file', error);
    }
    throw error;
  }
}

async function openDataFile(file: ImageFile, name: string | undefined): Promise<ImageFile> {
  if (name === undefined || name === '') {
    throw new RouseError('unsupported-format', `${file.path}: its data file is not named in it`, {
      advice: 'Write the name into the image: qemu-img amend -o data_file=NAME.',
    });
  }
  const { path: target } = backingTarget(file, name);
  try {
    return await ImageFile.open(target);
  } catch (error) {
    if (error instanceof RouseError && error.code === 'not-found') {
      throw missing(file, target, 'data file', error);
    }
    throw error;
  }
}

function missing(file: ImageFile, target: string, what: string, cause: RouseError): RouseError {
  return new RouseError('not-found', `${target}: missing; it is the ${what} of ${file.path}`, {
    advice:
      `Put it back, or tell ${path.basename(file.path)} where it is now: ` +
      'qemu-img rebase -u -b PATH -F FORMAT.',
    cause,
    details: { missing: target, referrer: file.path },
  });
}

async function exists(target: string): Promise<boolean> {
  return fs.access(target).then(
    () => true,
    () => false,
  );
}

interface BackingTarget {
  readonly path: string;
  readonly format: string | undefined;
}

/** Names are relative to the folder of the file that holds them, as QEMU has it. */
function backingTarget(file: ImageFile, name: string): BackingTarget {
  const plain = name.startsWith('file:') ? name.slice('file:'.length) : name;
  if (plain.startsWith('json:')) return jsonTarget(file, plain.slice('json:'.length));
  if (/^[a-z][a-z0-9+]*:/i.test(plain) || plain.includes('\0')) {
    throw new RouseError(
      'unsupported-format',
      `${file.path}: its backing file ${JSON.stringify(plain)} is not a local file`,
      { advice: 'Back the machine up while it runs, or convert the disk with qemu-img first.' },
    );
  }
  return { path: path.resolve(path.dirname(file.path), plain), format: undefined };
}

/** `json:{"driver":"qcow2","file":{"driver":"file","filename":"/path"}}`, as libvirt writes it. */
function jsonTarget(file: ImageFile, text: string): BackingTarget {
  const fields = jsonFields(text);
  const driver = fields.get('driver');
  const nested = fields.get('file.driver');
  const name =
    fields.get('file.filename') ?? (driver === 'file' ? fields.get('filename') : undefined);
  if (name === undefined || (nested ?? 'file') !== 'file') {
    throw new RouseError(
      'unsupported-format',
      `${file.path}: its backing file is described in a way that cannot be followed`,
      { advice: 'Name it plainly: qemu-img rebase -u -b PATH -F FORMAT.' },
    );
  }
  return {
    path: path.resolve(path.dirname(file.path), name),
    format: driver === 'file' ? undefined : driver,
  };
}

/** String values by dotted path, two levels deep. */
function jsonFields(text: string): Map<string, string> {
  const fields = new Map<string, string>();
  const visit = (value: unknown, prefix: string, depth: number): void => {
    if (typeof value === 'string') fields.set(prefix, value);
    if (typeof value !== 'object' || value === null || depth > 1) return;
    for (const [key, inner] of Object.entries(value)) {
      visit(inner, prefix === '' ? key : `${prefix}.${key}`, depth + 1);
    }
  };
  try {
    visit(JSON.parse(text), '', 0);
  } catch {
    fields.clear();
  }
  return fields;
}
