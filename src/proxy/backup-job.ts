import { RouseError, toRouseError } from '../errors.ts';
import type { BackupDiskSource, BackupReader, NfcAccess } from '../hypervisors/port.ts';
import { fileStamp } from '../lib/file-stamp.ts';
import type { Saveset, SavesetHeader, SavesetWriter } from '../vault/api.ts';
import { type IngestDisk, ingestDisks } from './ingest.ts';
import type { JobProgress } from './jobs.ts';
import type { JobSpec } from './port.ts';
import { jobLabel, type RunnerParts } from './runner.ts';
import { ingestStreams } from './stream-ingest.ts';

type BackupJob = Extract<JobSpec, { kind: 'backup' }>;

/** Reads a machine's disks as its hypervisor offers them, and makes a saveset of them. */
export async function backup(
  parts: RunnerParts,
  spec: BackupJob,
  writer: SavesetWriter,
  progress: JobProgress,
): Promise<Saveset> {
  const { source } = spec;
  const base =
    source.kind === 'incremental' && spec.baseSavesetId !== undefined
      ? await parts.vault.saveset(spec.baseSavesetId)
      : undefined;
  await refuseChanged(source.disks);
  const reader = spec.pass === undefined ? undefined : await parts.openReader(spec.pass);
  try {
    await readDisks({ parts, base, reader, signal: progress.signal }, spec, writer, progress);
  } finally {
    await reader?.close();
  }
  for (const file of source.files) await writer.file(file.name, Buffer.from(file.base64, 'base64'));
  const header: SavesetHeader = {
    machine: spec.machine,
    takenAtMs: spec.takenAtMs,
    kind: base === undefined ? 'full' : 'incremental',
    consistency: source.consistency,
    labels: { ...source.labels, [jobLabel]: spec.id },
    ...(base === undefined ? {} : { basedOn: base.id }),
  };
  await refuseChanged(source.disks);
  progress.signal.throwIfAborted();
  return writer.seal(header);
}

interface Around {
  readonly parts: RunnerParts;
  readonly base: Saveset | undefined;
  readonly reader: BackupReader | undefined;
  readonly signal: AbortSignal;
}

type Access = BackupDiskSource['access'];
/** Disks that are read at any place, and disks that come as a stream. */
type RandomSource = BackupDiskSource & { readonly access: Exclude<Access, NfcAccess> };
type StreamSource = BackupDiskSource & { readonly access: NfcAccess };

async function readDisks(
  around: Around,
  { source }: BackupJob,
  writer: SavesetWriter,
  progress: JobProgress,
): Promise<void> {
  const { blockBytes } = around.parts.vault;
  const streams = source.disks.filter(isStream);
  if (streams.length > 0) await download(around, streams, writer, progress);
  const disks: IngestDisk[] = [];
  try {
    for (const disk of source.disks) {
      if (!isStream(disk)) disks.push(await openSource(around, disk as RandomSource));
    }
    if (disks.length > 0) await ingestDisks(writer, disks, blockBytes, progress);
  } finally {
    await Promise.all(disks.map(({ disk }) => disk.close()));
  }
}

function isStream(disk: BackupDiskSource): disk is StreamSource {
  return disk.access.via === 'nfc';
}

/** All disks under one lease, which is told how far it is, and that it is over. */
async function download(
  { parts, reader, signal }: Around,
  disks: readonly StreamSource[],
  writer: SavesetWriter,
  progress: JobProgress,
): Promise<void> {
  const accesses = disks.map(({ access }) => access);
  const lease = await readerOf(reader).lease(accesses, signal);
  let isRead = false;
  try {
    const streams = disks.map(({ name, source, sizeBytes, access }) => {
      const start = (ended: AbortSignal) => lease.download(access, ended);
      return { name, source, sizeBytes, download: start };
    });
    const update: JobProgress['update'] = (change) => {
      const { doneBytes = 0, totalBytes = 0 } = change;
      if (totalBytes > 0) lease.progress(doneBytes / totalBytes);
      progress.update(change);
    };
    await ingestStreams(writer, streams, parts.vault.blockBytes, { signal, update });
    isRead = true;
  } finally {
    await lease.end(isRead ? 'complete' : 'abort');
  }
}

function readerOf(reader: BackupReader | undefined): BackupReader {
  if (reader !== undefined) return reader;
  throw new RouseError('bad-request', 'these disks are read with a pass, and none came along', {
    advice: 'Server and proxy do not speak the same version: restart both.',
  });
}

/** Files of a machine that is off: whoever wrote to one meanwhile made a mix of two states of it. */
async function refuseChanged(disks: readonly BackupDiskSource[]): Promise<void> {
  for (const { name, access } of disks) {
    if (access.via !== 'file' || access.stamp === undefined) continue;
    const now = await fileStamp(access.path).catch((error: unknown) => {
      throw toRouseError(error, access.path);
    });
    if (now === access.stamp) continue;
    throw new RouseError(
      'wrong-state',
      `disk ${name} changed while the machine was backed up as powered off: ${access.path}`,
      {
        advice:
          'It was powered on meanwhile, or something else writes to its disk. Back it up again: a ' +
          'running machine is read as of one moment.',
      },
    );
  }
}

async function openSource(
  { parts, base, reader, signal }: Around,
  from: RandomSource,
): Promise<IngestDisk> {
  const { access } = from;
  if (access.via === 'file') {
    const disk = await parts.openFile(access.path, access.format);
    return { name: from.name, source: from.source, disk };
  }
  const disk =
    access.via === 'nbd'
      ? await parts.openNbd(access)
      : readerOf(reader).folderDisk(from, access, signal);
  const before = base?.disks.find(({ name }) => name === from.name)?.root;
  const plain = { name: from.name, source: from.source, disk };
  if (before === undefined || before.sizeBytes !== disk.sizeBytes) return plain;
  const changes = disk.changes?.bind(disk);
  return changes === undefined ? plain : { ...plain, base: before, changes };
}
