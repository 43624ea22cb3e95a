import type { Services } from '../api/services.ts';
import type { Backup, BackupRequest, BackupService } from '../backup/schema.ts';
import type { CatalogService, EventService, EventView, ExportService } from '../catalog/schema.ts';
import type { HypervisorService, HypervisorView, VaultJob } from '../catalog/schema.ts';
import type { MtreeRequest, VaultService } from '../catalog/schema.ts';
import { RouseError } from '../errors.ts';
import { pick } from '../lib/text.ts';
import type {
  Recovery,
  RecoveryPlan,
  RecoveryRequest,
  RecoveryService,
  Sealing,
  SealService,
} from '../recovery/schema.ts';
import { stubBackup, stubMachines, stubNowMs, stubRecovery, stubSaveset } from './stub-views.ts';
import { proxyService, proxyTokens } from './stub-proxies.ts';
import { stubReconciled } from './stub-views.ts';
import { stubSavesets, stubStats, stubStatus, stubSteps } from './stub-views.ts';

/**
 * Services without anything behind them, for tests of the API and the command line. Work goes on
 * one step per turn of the event loop; the machine `slow01` stops half way until it is cancelled,
 * `broken01` fails at step 8. `calls` records what was asked for.
 */
export interface StubServices extends Services {
  readonly calls: unknown[];
  /** True: verifications find a bad block. */
  vaultIsBad: boolean;
}

export function stubServices(): StubServices {
  const calls: unknown[] = [];
  const recoveries = new Subject<Recovery>('recovery');
  const backups = new Subject<Backup>('backup');
  const jobs = new Subject<VaultJob & { name: string }>('job');
  const stubs: StubServices = {
    calls,
    vaultIsBad: false,
    recoveries: recoveryService(recoveries, calls),
    reconciler: {
      reconcile: async (request) => {
        calls.push(['reconcile', request]);
        return stubReconciled(request.dryRun);
      },
    },
    backups: backupService(backups, calls),
    catalog,
    hypervisors: hypervisorService(calls),
    exports,
    events,
    proxies: proxyService(calls),
    proxyTokens,
    vault: vaultService(jobs, () => stubs.vaultIsBad),
    status: { status: async () => stubStatus },
    metrics: async () => '# TYPE rouse_exports gauge\nrouse_exports 1\n',
  };
  return stubs;
}

interface Viewed {
  readonly id: string;
  readonly state: string;
}

/** Views by id, and everybody who watches them. */
class Subject<View extends Viewed> {
  readonly views = new Map<string, View>();
  readonly #what: string;
  #wake: (() => void)[] = [];

  constructor(what: string) {
    this.#what = what;
  }

  newId(): string {
    return `${this.#what.slice(0, 3)}${String(this.views.size + 1).padStart(7, '0')}`;
  }

  set(view: View): View {
    this.views.set(view.id, view);
    for (const wake of this.#wake.splice(0)) wake();
    return view;
  }

  find(reference: string, nameOf: (view: View) => string): View {
    const items = [...this.views.values()].toReversed();
    const named = items.map((view) => ({ id: view.id, name: nameOf(view), view }));
    return pick(this.#what, reference, named).view;
  }

  async *watch(id: string, ended: (view: View) => boolean, signal: AbortSignal) {
    let last: View | undefined;
    while (!signal.aborted) {
      const view = this.views.get(id);
      if (view !== undefined && view !== last) {
        yield view;
        last = view;
        if (ended(view)) return;
      } else {
        await new Promise<void>((resolve) => {
          this.#wake.push(resolve);
          signal.addEventListener('abort', () => resolve(), { once: true });
        });
      }
    }
  }
}

const ended = ['done', 'failed', 'cancelled'];
const tick = () => new Promise((resolve) => setImmediate(resolve));

function chosenSaveset(request: RecoveryRequest) {
  if (request.saveset !== undefined) {
    const all = stubSavesets.map((saveset) => ({ ...saveset, name: saveset.machine.name }));
    return pick('saveset', request.saveset, all);
  }
  const machine = pick('machine', request.machine ?? '', stubMachines);
  const atMs = request.at ?? stubNowMs;
  const found = stubSavesets.find(
    (saveset) => saveset.machine.id === machine.id && saveset.takenAtMs <= atMs,
  );
  if (found !== undefined) return found;
  throw new RouseError('not-found', `${machine.name} has no saveset taken before that time`, {
    advice: `List them: rouse savesets ${machine.name}`,
  });
}

async function advance(recoveries: Subject<Recovery>, id: string): Promise<void> {
  for (let done = 1; done <= 11; done += 1) {
    await tick();
    const view = recoveries.views.get(id);
    if (view?.state !== 'starting') return;
    if (view.machine.name === 'slow01' && done === 6) return;
    if (view.machine.name === 'broken01' && done === 8) {
      const message = 'host1 cannot mount the datastore: connection refused';
      const error = { code: 'hypervisor-error', message, advice: 'Open port 2049 on the proxy.' };
      const steps = view.steps.map((step) =>
        step.state === 'running'
          ? { ...step, state: 'failed' as const, detail: message }
          : step.state === 'done'
            ? { ...step, state: 'undone' as const }
            : step,
      );
      recoveries.set({ ...view, state: 'failed', error, steps, endedMs: stubNowMs + 900 });
      return;
    }
    recoveries.set({ ...view, steps: stubSteps(done) });
  }
  const view = recoveries.views.get(id);
  if (view === undefined) return;
  const path = `/main/Recover-local-${id}`;
  recoveries.set({
    ...view,
    state: 'available',
    clonePath: path,
    export: { path, address: '127.0.0.1', nfsPort: 2049, mountPort: 2050 },
    machineId: view.mode === 'publish' ? null : 'b7e1d2c4',
    availableMs: stubNowMs + 640,
    timeToAvailableMs: 640,
    steps: stubSteps(11),
  });
}

function planOf(request: RecoveryRequest): RecoveryPlan {
  const { id: _, ...view } = stubRecovery('', request, chosenSaveset(request));
  return {
    ...view,
    proxyAddress: '192.0.2.1',
    refusal: null,
    clients: request.clients ?? [],
    leaseEndsMs: stubNowMs + request.leaseMs,
    steps: stubSteps(13).map(({ number, name }) => ({
      number,
      name,
      detail: `would do ${name.toLowerCase()}`,
    })),
    changes: ['The disk vda is read from the export.', 'The NIC is disconnected.'],
    candidates: [
      {
        proxy: 'local',
        address: '192.0.2.1',
        host: 'host1',
        cluster: 'lab',
        datastore: null,
        score: 50,
        chosen: true,
        refusals: [],
        reasons: ['same network: 192.0.2.1 and 192.0.2.11 (+40)', 'the proxy is 0 % busy (+10)'],
      },
      {
        proxy: 'local',
        address: '192.0.2.1',
        host: 'host2',
        cluster: 'lab',
        datastore: null,
        score: 50,
        chosen: false,
        refusals: ['the host is in maintenance'],
        reasons: ['same network: 192.0.2.1 and 192.0.2.12 (+40)', 'the proxy is 0 % busy (+10)'],
      },
    ],
  };
}

const sealedSaveset = stubSaveset('sealed0001', 'web01', '2026-11-22T12:00:00Z', {
  kind: 'sealed',
});

function sealService(find: (reference: string) => Recovery): SealService {
  const view: Sealing = {
    id: 'rec0000001.seal.1',
    state: 'running',
    startedMs: stubNowMs,
    endedMs: null,
    doneBytes: 4096,
    totalBytes: 8192,
    savesetId: null,
    error: null,
  };
  const done: Sealing = { ...view, state: 'done', savesetId: sealedSaveset.id };
  const one = async (reference: string) => {
    find(reference);
    return view;
  };
  return {
    begin: one,
    list: async (reference) => [await one(reference)],
    get: one,
    cancel: async (reference) => ({ ...(await one(reference)), state: 'cancelled' }),
    watch: async function* (reference) {
      yield await one(reference);
      yield done;
    },
  };
}

const stubFullError = { code: 'disk-full', message: 'full is full', advice: 'Free some.' };

function recoveryService(recoveries: Subject<Recovery>, calls: unknown[]): RecoveryService {
  const find = (reference: string) => recoveries.find(reference, (view) => view.name);
  const change = (reference: string, what: unknown[], more: Partial<Recovery>) => {
    calls.push(what);
    return recoveries.set({ ...find(reference), ...more });
  };
  return {
    create: async (request) => {
      calls.push(['create', request]);
      const saveset = chosenSaveset(request);
      const view = recoveries.set(stubRecovery(recoveries.newId(), request, saveset));
      void advance(recoveries, view.id);
      return view;
    },
    plan: async (request) => planOf(request),
    list: async (filter) =>
      [...recoveries.views.values()]
        .toReversed()
        .filter((view) => filter.state === undefined || view.state === filter.state)
        .filter((view) => filter.active !== true || !ended.includes(view.state))
        .filter((view) => filter.machine === undefined || view.machine.name === filter.machine),
    get: async (reference) => find(reference),
    cancel: async (reference, request) =>
      change(reference, ['cancel', reference, request], {
        state: request.keepWrites ? 'parked' : 'cancelled',
        endedMs: stubNowMs,
      }),
    renew: async (reference, request) =>
      change(reference, ['renew', reference, request], {
        leaseEndsMs: stubNowMs + request.leaseMs,
      }),
    relocate: async (reference, request) => {
      const target = request.datastore ?? 'prod';
      const moved = { target, doneBytes: 4096, totalBytes: 4096, atMs: request.at ?? null };
      const isFull = target === 'full';
      return change(reference, ['relocate', reference, request], {
        state: isFull ? 'available' : 'done',
        relocation: { ...moved, error: isFull ? stubFullError : null },
      });
    },
    seal: async (reference) => {
      find(reference);
      return sealedSaveset;
    },
    seals: sealService(find),
    resume: async (reference) => {
      if (find(reference).state !== 'parked') {
        throw new RouseError('wrong-state', `${reference} is not parked`);
      }
      return change(reference, ['resume', reference], { state: 'available' });
    },
    picture: async (reference) => {
      find(reference);
      return Buffer.from([0x89, 0x50, 0x4e, 0x47]);
    },
    watch: (reference, signal) =>
      recoveries.watch(find(reference).id, (view) => ended.includes(view.state), signal),
  };
}

async function takeIn(backups: Subject<Backup>, id: string): Promise<void> {
  for (let quarter = 1; quarter <= 4; quarter += 1) {
    await tick();
    const view = backups.views.get(id);
    if (view?.state !== 'running') return;
    const doneBytes = (view.totalBytes * quarter) / 4;
    const parts = { doneBytes, newBytes: doneBytes / 4, knownBytes: (doneBytes * 3) / 4 };
    backups.set({ ...view, ...parts, etaMs: (4 - quarter) * 2_500 });
    if (view.machine.name === 'slow01' && quarter === 2) return;
  }
  const view = backups.views.get(id);
  if (view === undefined) return;
  if (view.machine.name === 'broken01') {
    const message = 'vda vanished while it was read';
    const error = { code: 'io-error', message, advice: 'Look at the disk.' };
    backups.set({ ...view, state: 'failed', error, endedMs: stubNowMs + 10_000 });
  } else {
    const endedMs = stubNowMs + 10_000;
    backups.set({ ...view, state: 'done', savesetId: 'new0saveset', endedMs, etaMs: 0 });
  }
}

function backupService(backups: Subject<Backup>, calls: unknown[]): BackupService {
  const find = (reference: string) => backups.find(reference, (view) => view.machine.name);
  return {
    start: async (request: BackupRequest) => {
      calls.push(['backup', request]);
      const name =
        request.kind === 'files'
          ? request.files.name
          : pick('machine', request.machine, stubMachines).name;
      const view = backups.set(stubBackup(backups.newId(), name));
      void takeIn(backups, view.id);
      return view;
    },
    list: async () => [...backups.views.values()].toReversed(),
    get: async (reference) => find(reference),
    cancel: async (reference) => {
      calls.push(['cancel backup', reference]);
      return backups.set({ ...find(reference), state: 'cancelled', endedMs: stubNowMs });
    },
    watch: (reference, signal) =>
      backups.watch(find(reference).id, (view) => ended.includes(view.state), signal),
  };
}

const catalog: CatalogService = {
  machines: async () => stubMachines,
  machine: async (reference) => pick('machine', reference, stubMachines, 'rouse machines'),
  savesets: async (filter) => {
    const { machine } = filter;
    if (machine === undefined) return stubSavesets;
    const { id } = pick('machine', machine, stubMachines);
    return stubSavesets.filter((saveset) => saveset.machine.id === id);
  },
  saveset: async (reference) => {
    if (reference === sealedSaveset.id) return sealedSaveset;
    const all = stubSavesets.map((saveset) => ({ ...saveset, name: saveset.machine.name }));
    const { name: _, ...saveset } = pick('saveset', reference, all);
    return saveset;
  },
};

function hypervisorService(calls: unknown[]): HypervisorService {
  const known: HypervisorView[] = [
    {
      id: 'hyp1',
      name: 'lab',
      kind: 'libvirt',
      uri: 'qemu:///system',
      datastores: [{ name: 'prod', path: '/srv/prod' }],
      createdMs: stubNowMs,
      state: 'reachable',
      checkedMs: stubNowMs,
    },
  ];
  return {
    list: async () => known,
    get: async (reference) => pick('hypervisor', reference, known),
    add: async (request) => {
      calls.push(['add hypervisor', request]);
      if (known.some((entry) => entry.name === request.name)) {
        throw new RouseError('already-exists', `a hypervisor is called "${request.name}" already`);
      }
      const state = 'reachable' as const;
      const { name, kind, uri, datastores } = request;
      const seen = { createdMs: stubNowMs, state, checkedMs: stubNowMs };
      const added = { id: 'hyp2', name, kind, uri, datastores, ...seen };
      known.push(added);
      return added;
    },
    remove: async (reference) => {
      known.splice(known.indexOf(pick('hypervisor', reference, known)), 1);
    },
    test: async (reference) => {
      const { name } = pick('hypervisor', reference, known);
      const problem = { message: 'KVM is not usable', advice: 'Load the kvm module.' };
      const facts = { libvirt: '9.0.0', kvm: 'no' };
      return { ok: name === 'lab', version: 'libvirt 9.0.0', problems: [problem], facts };
    },
    inventory: async () => ({
      clusters: [],
      hosts: [{ id: 'h1', name: 'host1', state: 'connected', addresses: ['127.0.0.1', '::1'] }],
      networks: [],
      datastores: [],
      machines: [],
    }),
  };
}

const exports: ExportService = {
  list: async () => [
    {
      path: '/main/Recover-local-rec0000001',
      cloneId: 'Recover-local-rec0000001',
      clients: ['192.0.2.7', '2001:db8::7'],
      nfsPort: 2049,
      mountPort: 2049,
      connected: ['192.0.2.7'],
      mounted: ['192.0.2.7'],
      watchedSinceMs: stubNowMs,
      lastUsedMs: stubNowMs,
      counters: {
        reads: 12_000,
        readBytes: 400_000_000,
        writes: 900,
        writtenBytes: 9_000_000,
        others: 70,
        refused: 0,
      },
      proxy: 'local',
      recovery: { id: 'rec0000001', name: 'web01-recovered' },
    },
  ],
};

const happened: readonly EventView[] = [1, 2, 3].map((id) => ({
  id,
  atMs: stubNowMs + id,
  level: id === 3 ? 'warning' : 'info',
  kind: 'recovery.available',
  subject: { kind: 'recovery', id: 'rec0000001', name: 'web01-recovered' },
  message: `web01-recovered is available (${id})`,
}));

const events: EventService = {
  list: async ({ limit, after = 0 }) => happened.filter((event) => event.id > after).slice(-limit),
  async *watch(after) {
    yield* happened.filter((event) => event.id > (after ?? 0));
  },
};

function vaultService(
  jobs: Subject<VaultJob & { name: string }>,
  isBad: () => boolean,
): VaultService {
  const start = (kind: VaultJob['kind']) => {
    const base = { id: jobs.newId(), name: kind, kind, startedMs: stubNowMs, totalBytes: 1000 };
    const none = { endedMs: null, doneBytes: 0, verify: null, rescan: null, error: null };
    const view = jobs.set({ ...base, ...none, state: 'running' });
    void finish(view);
    return view;
  };
  const finish = async (view: VaultJob & { name: string }) => {
    await tick();
    jobs.set({ ...view, doneBytes: 500 });
    await tick();
    const ok = !isBad();
    const problems = ok ? [] : ['vda: 32768 bytes at 65536 do not match their hash'];
    const verify = {
      ok,
      savesets: [{ id: 'qy7m2c5n8k', machine: 'web01', ok, blocks: 9, bytes: 294_912, problems }],
    };
    const rescan = { packs: 97, blocks: 262_144, savesets: 4, problems };
    const report = view.kind === 'verify' ? { verify } : { rescan };
    jobs.set({ ...view, ...report, state: 'done', doneBytes: 1000, endedMs: stubNowMs + 5 });
  };
  return {
    stats: async () => stubStats,
    mtrees: async () => [{ name: 'main', codec: 'lz4', createdMs: stubNowMs }],
    createMtree: async (request: MtreeRequest) => ({ ...request, createdMs: stubNowMs }),
    verify: async () => start('verify'),
    rescan: async () => start('rescan'),
    job: async (id) => jobs.find(id, (view) => view.name),
    cancelJob: async (id) =>
      jobs.set({ ...jobs.find(id, (view) => view.name), state: 'cancelled' }),
    watchJob: (id, signal) => jobs.watch(id, (view) => ended.includes(view.state), signal),
  };
}
