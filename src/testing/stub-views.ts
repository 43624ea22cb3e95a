import type { Backup } from '../backup/schema.ts';
import type { MachineView, SavesetView, Status } from '../catalog/schema.ts';
import type { ReconcileReport } from '../recovery/reconcile-schema.ts';
import type { Recovery, RecoveryRequest, RecoveryStep } from '../recovery/schema.ts';
import type { VaultStats } from '../vault/api.ts';

/** Views as a small installation would show them; the stub services (stub-services.ts) are made of them. */
export const stubNowMs = Date.parse('2026-11-22T12:00:00Z');
const GiB = 1024 ** 3;

export function stubSaveset(
  id: string,
  machine: string,
  takenAt: string,
  more: Partial<SavesetView> = {},
): SavesetView {
  return {
    id,
    mtree: 'main',
    machine: { id: `id-${machine}`, name: machine },
    takenAtMs: Date.parse(takenAt),
    kind: 'full',
    basedOn: null,
    consistency: 'filesystem',
    logicalBytes: 40 * GiB,
    newBytes: 2 * GiB,
    storedBytes: GiB,
    disks: [
      { name: 'vda', sizeBytes: 30 * GiB, source: '/var/lib/images/vda.qcow2 (qcow2)' },
      { name: 'vdb', sizeBytes: 10 * GiB, source: '/var/lib/images/vdb.raw (raw)' },
    ],
    files: [{ name: 'domain.xml', sizeBytes: 5_120 }],
    ...more,
  };
}

export const stubSavesets: readonly SavesetView[] = [
  stubSaveset('qy7m2c5n8k', 'web01', '2026-11-21T22:00:00Z', {
    kind: 'incremental',
    basedOn: 'h3kd9xw2pf',
  }),
  stubSaveset('tz5b8d2mwr', 'slow01', '2026-11-21T21:00:00Z', { consistency: 'crash' }),
  stubSaveset('b6n3y9c7vq', 'broken01', '2026-11-21T20:00:00Z'),
  stubSaveset('h3kd9xw2pf', 'web01', '2026-11-20T22:00:00Z'),
];

export const stubMachines: readonly MachineView[] = [
  ['web01', 'on', 'qy7m2c5n8k'],
  ['slow01', 'off', 'tz5b8d2mwr'],
  ['broken01', null, 'b6n3y9c7vq'],
  ['büro-東京-アプリケーションサーバー-mit-einem-sehr-langen-Namen', 'paused', null],
].map(([name, power, saveset]) => ({
  id: `id-${name}`,
  name: name ?? '',
  hypervisor: power === null ? null : 'lab',
  power: power as MachineView['power'],
  savesets: stubSavesets.filter((entry) => entry.machine.name === name).length,
  latestSaveset:
    saveset === null || saveset === undefined
      ? null
      : { id: saveset, takenAtMs: stubNowMs - 50_000_000 },
  logicalBytes: 40 * GiB,
  recoveries: [],
}));

const stepNames = [
  'Device',
  'Proxy',
  'Host',
  'Hand over',
  'Ask for the copy',
  'Clone',
  'Export',
  'Datastore',
  'Configure',
  'Power on',
  'Available',
  'Relocate',
  'Clean up',
];

export function stubSteps(done: number): readonly RecoveryStep[] {
  return stepNames.map((name, index) => ({
    number: index + 1,
    name,
    state: index < done ? 'done' : index === done && done < 11 ? 'running' : 'waiting',
    startedMs: index <= done ? stubNowMs + index * 20 : null,
    endedMs: index < done ? stubNowMs + index * 20 + 17 : null,
    progress: null,
    detail: index < done ? `${name.toLowerCase()} is found` : null,
    subSteps: [],
  }));
}

export function stubRecovery(id: string, request: RecoveryRequest, saveset: SavesetView): Recovery {
  const publish = request.mode === 'publish';
  return {
    id,
    machine: saveset.machine,
    saveset: { id: saveset.id, takenAtMs: saveset.takenAtMs },
    mode: request.mode,
    state: 'starting',
    name: request.name ?? `${saveset.machine.name}-recovered`,
    hypervisor: publish ? null : 'lab',
    host: publish ? null : (request.host ?? 'host1'),
    proxy: 'local',
    datastore: request.relocateTo ?? request.datastore ?? null,
    clonePath: null,
    export: null,
    disks: saveset.disks.map((disk) => ({
      name: disk.name,
      path: `${saveset.machine.name}/${disk.name}-flat.vmdk`,
      sizeBytes: disk.sizeBytes,
    })),
    target: request.into === undefined ? null : { id: `id-${request.into}`, name: request.into },
    attached: [],
    machineId: null,
    createdMs: stubNowMs,
    availableMs: null,
    timeToAvailableMs: null,
    leaseEndsMs: stubNowMs + request.leaseMs,
    endedMs: null,
    writtenBytes: 0,
    warnings: [],
    error: null,
    steps: stubSteps(0),
    relocation: null,
    hasPicture: true,
  };
}

export function stubBackup(id: string, machine: string, more: Partial<Backup> = {}): Backup {
  return {
    id,
    machine: { id: `id-${machine}`, name: machine },
    hypervisor: 'lab',
    mtree: 'main',
    state: 'running',
    kind: 'full',
    fullBecause: 'this machine has no saveset yet',
    consistency: 'crash',
    waitsFor: null,
    doneBytes: 0,
    totalBytes: 4 * GiB,
    newBytes: 0,
    knownBytes: 0,
    bytesPerSecond: 400 * 1024 ** 2,
    etaMs: 10_000,
    savesetId: null,
    startedMs: stubNowMs,
    endedMs: null,
    warnings: [],
    error: null,
    ...more,
  };
}

const stubLeftNote = 'It holds 9 MiB that were written. To discard them: rouse reconcile --force';

export function stubReconciled(dryRun: boolean): ReconcileReport {
  const common = { recovery: 'k3f9x2m7qa', problem: 'no recovery k3f9x2m7qa is known' };
  const machine = { kind: 'machine', name: 'web01-recovered', where: 'lab', ...common } as const;
  const clone = { kind: 'clone', name: 'Recover-local-k3f9x2m7qa', where: 'local' } as const;
  const outcome = dryRun ? 'would mend' : 'mended';
  return {
    atMs: stubNowMs,
    dryRun,
    findings: [
      { ...machine, outcome, note: 'unregistered' },
      { ...clone, ...common, outcome: 'left', note: stubLeftNote },
    ],
    unreachable: [],
  };
}

export const stubStats: VaultStats = {
  formatVersion: 1,
  blockBytes: 32_768,
  savesets: 4,
  machines: 3,
  packs: 97,
  logicalBytes: 160 * GiB,
  referencedBytes: 24 * GiB,
  uniqueBytes: 8 * GiB,
  storedBytes: 3.5 * GiB,
  dedupRatio: 3,
  compressionRatio: 2.29,
  indexEntries: 262_144,
  indexMemoryBytes: 7_340_032,
  cache: { boundBytes: GiB, usedBytes: GiB / 2, hits: 900, misses: 100 },
};

export const stubStatus: Status = {
  server: {
    version: '0.1.0',
    pid: 4242,
    startedMs: stubNowMs - 3_600_000,
    socket: '/var/lib/rouse/run/server.sock',
    dataDirectory: '/var/lib/rouse',
  },
  proxy: {
    name: 'local',
    version: '0.1.0',
    wire: 1,
    pid: 4243,
    startedMs: stubNowMs - 3_600_000,
    nowMs: stubNowMs,
    vault: { id: 'v7k3', path: '/var/lib/rouse/vault', blockBytes: 32_768 },
    nfs: { port: 2049, mountPort: 2049, portmapper: 'bound on 111' },
    clones: 1,
    exports: 1,
    jobs: 0,
    load: 0.1,
    cache: { usedBytes: GiB / 2, boundBytes: GiB },
    networks: ['127.0.0.1/8', '192.0.2.1/24'],
    memoryBytes: 300 * 1024 ** 2,
    space: { totalBytes: 500 * GiB, freeBytes: 321 * GiB },
  },
  vault: stubStats,
  counts: {
    machines: 4,
    savesets: 4,
    hypervisors: 1,
    exports: 1,
    activeRecoveries: 1,
    runningBackups: 0,
  },
  warnings: ['The lease of web01-recovered ends in 23 hours.'],
};
