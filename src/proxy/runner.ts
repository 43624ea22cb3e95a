import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { RouseError, toRouseError } from '../errors.ts';
import type { BackupDiskSource, BackupPass, BackupReader } from '../hypervisors/port.ts';
import type { DiskOutput } from '../formats/disk-output.ts';
import type { Extent, ReadableDisk } from '../lib/disk.ts';
import { proxyLimits } from '../limits.ts';
import type { Saveset, SavesetWriter, Vault } from '../vault/api.ts';
import { backup } from './backup-job.ts';
import { type IngestDisk, ingestDisks } from './ingest.ts';
import type { JobProgress, JobRunner } from './jobs.ts';
import type { JobResult, JobSpec } from './port.ts';

/** A disk being backed up over NBD, with the ranges that changed since the last backup. */
export interface NbdDisk extends ReadableDisk {
  changes?(offset: number, length: number): Promise<readonly Extent[]>;
}

export type NbdAccess = Extract<BackupDiskSource['access'], { via: 'nbd' }>;

/** What the jobs stand on, passed in by main.ts. */
export interface RunnerParts {
  readonly vault: Vault;
  openFile(path: string, format: string | undefined): Promise<ReadableDisk>;
  openNbd(access: NbdAccess): Promise<NbdDisk>;
  /** A session at a manager whose disks are not open to everyone. */
  openReader(pass: BackupPass): Promise<BackupReader>;
  createTarget(path: string, format: 'raw' | 'qcow2', sizeBytes: number): Promise<DiskOutput>;
  sealClone(
    cloneId: string,
    writer: SavesetWriter,
    takenAtMs: number,
    labels: Readonly<Record<string, string>>,
    progress: JobProgress,
  ): Promise<Saveset>;
  /** The mtree of a clone. */
  mtreeOf(cloneId: string): string;
}

/** The label by which a repeated job finds the saveset that it stored before it was interrupted. */
export const jobLabel = 'rouse.job';

export function createRunner(parts: RunnerParts): JobRunner {
  return async (spec, progress) => {
    switch (spec.kind) {
      case 'backup':
      case 'import':
      case 'seal':
        return (await alreadyStored(parts.vault, spec.id)) ?? store(parts, spec, progress);
      case 'restore':
        return restore(parts, spec, progress);
      case 'verify': {
        const report = await parts.vault.verify(
          spec.savesetId,
          (done) => progress.update(done),
          progress.signal,
        );
        return { kind: 'verify', report };
      }
      case 'rescan': {
        const report = await parts.vault.rescan((done) => progress.update(done), progress.signal);
        return { kind: 'rescan', report };
      }
    }
  };
}

async function alreadyStored(vault: Vault, jobId: string): Promise<JobResult | undefined> {
  const savesets = await vault.savesets();
  const saveset = savesets.find(({ labels }) => labels[jobLabel] === jobId);
  return saveset === undefined ? undefined : { kind: 'saveset', saveset };
}

type StoreSpec = Extract<JobSpec, { kind: 'backup' | 'import' | 'seal' }>;

async function store(
  parts: RunnerParts,
  spec: StoreSpec,
  progress: JobProgress,
): Promise<JobResult> {
  const mtree = spec.kind === 'seal' ? parts.mtreeOf(spec.cloneId) : spec.mtree;
  const writer = await parts.vault.begin(mtree);
  try {
    const saveset = await take(parts, spec, writer, progress);
    return { kind: 'saveset', saveset };
  } catch (error) {
    await writer.abandon();
    throw error;
  }
}

async function take(
  parts: RunnerParts,
  spec: StoreSpec,
  writer: SavesetWriter,
  progress: JobProgress,
): Promise<Saveset> {
  switch (spec.kind) {
    case 'backup':
      return backup(parts, spec, writer, progress);
    case 'import':
      return importFiles(parts, spec, writer, progress);
    case 'seal':
      return parts.sealClone(
        spec.cloneId,
        writer,
        spec.takenAtMs,
        { [jobLabel]: spec.id },
        progress,
      );
  }
}

async function importFiles(
  parts: RunnerParts,
  spec: Extract<JobSpec, { kind: 'import' }>,
  writer: SavesetWriter,
  progress: JobProgress,
): Promise<Saveset> {
  const disks: IngestDisk[] = [];
  try {
    for (const { name, path: file, format } of spec.disks) {
      disks.push({ name, source: file, disk: await parts.openFile(file, format) });
    }
    await ingestDisks(writer, disks, parts.vault.blockBytes, progress);
  } finally {
    await Promise.all(disks.map(({ disk }) => disk.close()));
  }
  if (spec.configuration !== undefined) {
    const kind = path.extname(spec.configuration) === '.vmx' ? 'machine.vmx' : 'domain.xml';
    await writer.file(kind, await readSmall(spec.configuration));
  }
  if (spec.nvram !== undefined) await writer.file('nvram', await readSmall(spec.nvram));
  progress.signal.throwIfAborted();
  return writer.seal({
    machine: spec.machine,
    takenAtMs: spec.takenAtMs,
    kind: 'full',
    consistency: 'offline',
    labels: { [jobLabel]: spec.id },
  });
}

async function readSmall(file: string): Promise<Buffer> {
  try {
    const { size } = await fs.stat(file);
    if (size > proxyLimits.cloneFileBytesMax) {
      throw new RouseError('bad-request', `${file} has ${size} bytes: too large for this`);
    }
    return await fs.readFile(file);
  } catch (error) {
    throw toRouseError(error, file);
  }
}

/** Full restore: each disk is written to its target, holes left out, and synced. */
async function restore(
  parts: RunnerParts,
  spec: Extract<JobSpec, { kind: 'restore' }>,
  progress: JobProgress,
): Promise<JobResult> {
  const saveset = await parts.vault.saveset(spec.savesetId);
  const chosen = spec.disks.map((target) => {
    const disk = saveset.disks.find(({ name }) => name === target.name);
    if (disk !== undefined) return { target, disk };
    throw new RouseError('not-found', `saveset ${saveset.id} has no disk ${target.name}`);
  });
  const totalBytes = chosen.reduce((sum, { disk }) => sum + disk.root.sizeBytes, 0);
  let doneBytes = 0;
  for (const { target, disk } of chosen) {
    const from = await parts.vault.openDisk(disk.root);
    const to = await parts.createTarget(target.path, target.format, disk.root.sizeBytes);
    try {
      await copyDisk(from, to, progress.signal, (bytes) => {
        doneBytes += bytes;
        progress.update({ doneBytes, totalBytes });
      });
      await to.finish();
    } catch (error) {
      await to.abandon();
      throw error;
    } finally {
      await from.close();
    }
  }
  return { kind: 'restore', bytes: doneBytes };
}

async function copyDisk(
  from: ReadableDisk,
  to: DiskOutput,
  signal: AbortSignal,
  done: (bytes: number) => void,
): Promise<void> {
  const buffer = Buffer.allocUnsafe(proxyLimits.ingestReadBytes);
  for (let at = 0; at < from.sizeBytes; at += proxyLimits.extentStrideBytes) {
    const length = Math.min(proxyLimits.extentStrideBytes, from.sizeBytes - at);
    for (const extent of await from.extents(at, length)) {
      for (let part = 0; !extent.zero && part < extent.length; part += buffer.length) {
        signal.throwIfAborted();
        const bytes = buffer.subarray(0, Math.min(buffer.length, extent.length - part));
        await from.read(bytes, extent.offset + part);
        await to.write(bytes, extent.offset + part);
        done(bytes.length);
      }
      if (extent.zero) done(extent.length);
    }
  }
}
