import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, open, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type StandIn, startStandIn, writeMachine } from '#lab/vcenter/vcenter.ts';
import type { World } from '#lab/world.ts';
import type { Backup, BackupRequest } from '#src/backup/schema.ts';
import { openDirectoryStore } from '#src/blobs/directory-store.ts';
import { openDatabase } from '#src/database/database.ts';
import type { Hypervisor } from '#src/hypervisors/port.ts';
import { VsphereHypervisor } from '#src/hypervisors/vsphere/driver.ts';
import { VsphereReader } from '#src/hypervisors/vsphere/reader.ts';
import { type Clock, systemClock } from '#src/lib/clock.ts';
import { nodeFiles } from '#src/lib/node-files.ts';
import { systemRandom } from '#src/lib/random.ts';
import { Jobs } from '#src/proxy/jobs.ts';
import type { JobSpec, JobView } from '#src/proxy/port.ts';
import { createRunner } from '#src/proxy/runner.ts';
import { MemoryProxy } from '#src/testing/memory-proxy.ts';
import { readWhole } from '#src/testing/vault-world.ts';
import type { Saveset } from '#src/vault/api.ts';
import { createVault, type OpenedVault, openVault } from '#src/vault/vault.ts';
import { BackupServer, mortal } from '../simulation/backup-world.ts';

const MiB = 1 << 20;

/** A proxy's jobs on a real vault, read with a real session at the stand-in. */
class JobProxy extends MemoryProxy {
  readonly specs: JobSpec[] = [];
  readonly #parts: { readonly vault: OpenedVault; readonly silenceMs: number };
  #jobs: Jobs;

  constructor(parts: { readonly vault: OpenedVault; readonly silenceMs: number }) {
    super([]);
    this.#parts = parts;
    this.#jobs = this.#fresh();
  }

  #fresh(): Jobs {
    const { vault, silenceMs } = this.#parts;
    const none = () => Promise.reject(new Error('only sessions at the stand-in here'));
    const runner = createRunner({
      vault,
      openFile: none,
      openNbd: none,
      openReader: async (pass) => new VsphereReader(pass, systemClock, { silenceMs }),
      createTarget: none,
      sealClone: none,
      mtreeOf: () => 'main',
    });
    return new Jobs(runner, systemClock);
  }

  /** Everything in memory is gone, as after a kill; what was read goes on for nobody. */
  restart(): void {
    void this.#jobs.close();
    this.#jobs = this.#fresh();
  }

  close(): Promise<void> {
    return this.#jobs.close();
  }

  override async startJob(spec: JobSpec): Promise<JobView> {
    this.specs.push(spec);
    return this.#jobs.start(spec);
  }

  override async job(id: string, waitMs?: number, version?: number): Promise<JobView> {
    return this.#jobs.view(id, waitMs, version);
  }

  override async cancelJob(id: string): Promise<void> {
    await this.#jobs.cancel(id);
  }
}

export interface MachineSpec {
  readonly name: string;
  readonly disks: readonly string[];
  readonly poweredOn?: boolean;
  readonly settings?: Readonly<Record<string, string>>;
}

/** A stand-in with machines on a production datastore, and the parts of a server and a proxy. */
export class VsphereBackupWorld {
  readonly vcenter: StandIn;
  readonly vault: OpenedVault;
  readonly proxy: JobProxy;
  readonly production: string;
  readonly #directory: string;
  readonly #drivers: VsphereHypervisor[] = [];
  #servers = 0;

  private constructor(directory: string, production: string, vcenter: StandIn, vault: OpenedVault) {
    this.#directory = directory;
    this.production = production;
    this.vcenter = vcenter;
    this.vault = vault;
    this.proxy = new JobProxy({ vault, silenceMs: 4_000 });
  }

  static async open(
    world: World,
    specs: readonly MachineSpec[],
    extra: { readonly nvram?: readonly string[] } = {},
  ): Promise<VsphereBackupWorld> {
    const { directory } = world;
    const production = join(directory, 'production');
    await mkdir(production, { recursive: true });
    const machines = [];
    for (const { poweredOn, ...spec } of specs) {
      const vmx = await writeMachine({ directory: production, ...spec });
      machines.push({ vmx: `[production] ${vmx}`, host: 'esx1', poweredOn: poweredOn ?? false });
    }
    for (const name of extra.nvram ?? []) {
      await writeFile(join(production, name, `${name}.nvram`), `variables of ${name}`);
    }
    const vcenter = await startStandIn({
      directory: join(directory, 'vc'),
      inventory: {
        datacenters: [
          {
            name: 'dc1',
            hosts: [{ name: 'esx1', addresses: ['127.0.0.1'] }],
            datastores: [{ name: 'production', directory: production }],
            machines,
          },
        ],
      },
    });
    const store = await openDirectoryStore({
      files: nodeFiles,
      directory: join(directory, 'vault'),
      random: systemRandom,
    });
    await createVault(store, { random: systemRandom });
    const vault = await openVault({
      store,
      index: { files: nodeFiles, directory: join(directory, 'index') },
      cacheBytes: 8 * MiB,
      clock: systemClock,
      random: systemRandom,
    });
    await vault.createMtree('main', 'lz4');
    return new VsphereBackupWorld(directory, production, vcenter, vault);
  }

  driver(clock: Clock = systemClock): VsphereHypervisor {
    const { url, user, password, fingerprint } = this.vcenter;
    const driver = new VsphereHypervisor({
      url,
      user,
      password: async () => password,
      trust: { fingerprint },
      clock,
    });
    this.#drivers.push(driver);
    return driver;
  }

  async machineIds(): Promise<ReadonlyMap<string, string>> {
    return new Map((await this.vcenter.machines()).map(({ name, id }) => [name, id]));
  }

  /** A server with its own database, unless it goes on with another's; it may be killed. */
  async server(
    options: {
      readonly meet?: () => Promise<void>;
      readonly died?: Promise<'died'>;
      readonly database?: string;
      readonly wrap?: (driver: VsphereHypervisor) => Hypervisor;
      readonly hastenTo?: number;
    } = {},
  ): Promise<BackupServer> {
    const { meet = async () => undefined, hastenTo = 50 } = options;
    const path = options.database ?? this.newDatabase();
    const ids = await this.machineIds();
    const clock: Clock = {
      now: () => systemClock.now(),
      monotonic: () => systemClock.monotonic(),
      sleep: async (ms, signal) => {
        await meet();
        await systemClock.sleep(Math.min(ms, hastenTo), signal);
      },
    };
    const driver = this.driver();
    return BackupServer.open({
      database: await openDatabase({ path, clock: systemClock }),
      clock,
      hypervisor: mortal(options.wrap?.(driver) ?? driver, meet),
      proxy: mortal(this.proxy, meet),
      kept: this.#kept,
      died: options.died ?? new Promise(() => undefined),
      machineId: (name) => ids.get(name) ?? name,
    });
  }

  readonly #kept = new Map();

  /** Begins a backup and waits for its end; nothing of it is left at the stand-in. */
  async backUp(server: BackupServer, machine: string): Promise<Backup> {
    const { id } = await server.backups.start(requestOf(machine));
    const view = await server.ended(id);
    assert.ok(view !== 'died');
    assert.equal(view.state, 'done', JSON.stringify(view.error));
    assert.deepEqual(await this.leftSnapshots(), []);
    return view;
  }

  newDatabase(): string {
    this.#servers += 1;
    return join(this.#directory, `catalog-${this.#servers}.sqlite`);
  }

  flat(machine: string, disk = 0): string {
    const file = disk === 0 ? machine : `${machine}_${disk}`;
    return join(this.production, machine, `${file}-flat.vmdk`);
  }

  /** Writes to a disk of a machine that is off. */
  async scribble(machine: string, offset: number, length: number, disk = 0): Promise<void> {
    const file = await open(this.flat(machine, disk), 'r+');
    await file.write(randomBytes(length), 0, length, offset);
    await file.close();
  }

  /** SHA-256 of what a saveset holds of each disk, in order. */
  async hashes(saveset: Saveset): Promise<readonly string[]> {
    const hashes: string[] = [];
    for (const { root } of saveset.disks) hashes.push(sha256(await readWhole(this.vault, root)));
    return hashes;
  }

  async hashOf(machine: string, disk = 0): Promise<string> {
    return sha256(await readFile(this.flat(machine, disk)));
  }

  /** Snapshots that there are, of whomever, as the driver's traces and the calls tell. */
  async leftSnapshots(): Promise<readonly string[]> {
    const { backups } = await this.driver().traces();
    return backups.map(({ machineName, token }) => `${machineName}: ${token}`);
  }

  async close(): Promise<void> {
    await this.proxy.close();
    // Those of killed servers could not log out; all sessions end with the stand-in.
    for (const driver of this.#drivers) driver.client.http.close();
    await this.vault.close();
    await this.vcenter.stop();
  }
}

export function requestOf(machine: string): BackupRequest {
  const unsaid = { hypervisor: undefined, mtree: undefined, proxy: undefined };
  return { kind: 'machine', machine, full: false, ...unsaid };
}

/** A sparse image with noise at its beginning, in its middle and at its end. */
export async function sparseImage(path: string, sizeBytes: number): Promise<string> {
  await writeFile(path, '');
  await truncate(path, sizeBytes);
  const file = await open(path, 'r+');
  for (const at of [0, sizeBytes / 2, sizeBytes - 128 * 1024]) {
    await file.write(randomBytes(128 * 1024), 0, 128 * 1024, at);
  }
  await file.close();
  return path;
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
