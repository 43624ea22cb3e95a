import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildBootSector } from '#lab/guest.ts';
import { eventually } from '#lab/processes.ts';
import { startStandIn, writeMachine, type StandIn } from '#lab/vcenter/vcenter.ts';
import type { Inventory, StandInMachine } from '#lab/vcenter/stand-in.ts';
import { worldAddresses, type Host, type World } from '#lab/world.ts';
import { configOf } from '#src/config.ts';
import { openDatabase } from '#src/database/database.ts';
import { VsphereHypervisor } from '#src/hypervisors/vsphere/driver.ts';
import { type Clock, systemClock } from '#src/lib/clock.ts';
import { httpClient } from '#src/lib/http-client.ts';
import { systemRandom } from '#src/lib/random.ts';
import { openProxy } from '#src/proxy.ts';
import { proxyClient } from '#src/proxy/client.ts';
import type { Proxy } from '#src/proxy/port.ts';
import { runJob } from '#src/proxy/jobs-client.ts';
import type { Saveset } from '#src/vault/api.ts';
import { Running } from '../simulation/recovery-world.ts';
import { mortalClient, mortalProxy, Mortality } from './vsphere-mortal.ts';

/** Databases that need not outlive a power cut. */
const memory = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

/** Pauses are a tenth as long, as nobody has to wait for people here. */
const shortPauses: Clock = {
  now: () => systemClock.now(),
  monotonic: () => systemClock.monotonic(),
  sleep: (milliseconds, signal) => systemClock.sleep(milliseconds / 10, signal),
};

/**
 * The stand-in for vCenter with two hosts of one cluster, a real proxy, and servers that are parts
 * of this process, so that many recoveries are tried in little time. The machine is a boot sector
 * that says how often it was booted.
 */
export class VsphereScene {
  readonly vcenter: StandIn;
  readonly proxy: Proxy;
  readonly hosts: readonly [Host, Host];
  readonly production: string;
  readonly #saveset: Saveset;
  readonly #end: () => Promise<void>;
  readonly #databases: string[] = [];

  private constructor(
    vcenter: StandIn,
    proxy: Proxy,
    hosts: readonly [Host, Host],
    production: string,
    saveset: Saveset,
    end: () => Promise<void>,
  ) {
    this.vcenter = vcenter;
    this.proxy = proxy;
    this.hosts = hosts;
    this.production = production;
    this.#saveset = saveset;
    this.#end = end;
  }

  static async open(world: World, more: Partial<Inventory> = {}): Promise<VsphereScene> {
    const { directory } = world;
    const production = join(directory, 'production');
    await mkdir(production, { recursive: true });
    await writeHelper(directory);
    const hosts = [await world.addHost('esx1'), await world.addHost('esx2')] as const;
    const vcenter = await startStandIn({
      directory: join(directory, 'vc'),
      inventory: { ...inventoryOf(hosts, directory), ...more },
    });
    const { proxy, close } = await startProxy(join(directory, 'data'));
    const saveset = await storeMachine(proxy, directory);
    return new VsphereScene(vcenter, proxy, hosts, production, saveset, async () => {
      await vcenter.stop();
      await close();
      await world.end();
    });
  }

  async close(): Promise<void> {
    for (const path of this.#databases) rmSync(path, { recursive: true, force: true });
    await this.#end();
  }

  /** Another one with its own session; `user` has the same password. */
  driver(clock: Clock = shortPauses, user: string = this.vcenter.user): VsphereHypervisor {
    const { url, fingerprint, password } = this.vcenter;
    const trust = { fingerprint };
    return new VsphereHypervisor({ url, user, trust, clock, password: async () => password });
  }

  /** A database for servers that follow one another. */
  database(): string {
    const path = mkdtempSync(join(memory, 'rouse-vsphere-'));
    this.#databases.push(path);
    return join(path, 'catalog.sqlite');
  }

  /** A server on that database; it dies at that meeting with the world outside. */
  async server(path: string, dieAt = Number.POSITIVE_INFINITY): Promise<MortalServer> {
    const life = new Mortality(dieAt);
    const clock = life.clock(shortPauses);
    const driver = this.driver(clock);
    mortalClient(driver.client, life);
    const running = await Running.open({
      database: await openDatabase({ path, clock }),
      clock,
      hypervisor: driver,
      proxy: mortalProxy(this.proxy, life),
      died: life.died,
      saveset: this.#saveset,
      address: worldAddresses.ipv4,
    });
    return { running, driver, life };
  }

  /** What is there of ours, as the stand-in and the proxy tell it. */
  async held(): Promise<{ mounted: string[]; exports: string[]; clones: string[] }> {
    const mounts = (await this.vcenter.datastores()).filter(({ remote }) => remote !== '');
    return {
      mounted: mounts.map(({ name }) => name),
      exports: (await this.proxy.exports()).map(({ path }) => path),
      clones: (await this.proxy.clones()).map(({ cloneId }) => cloneId),
    };
  }

  /** All of them but the helper. */
  async machines(): Promise<readonly StandInMachine[]> {
    return (await this.vcenter.machines()).filter(({ name }) => name !== 'helper');
  }

  /** How often the machine says that it was booted. */
  async boots(name: string): Promise<number> {
    const { serialLog } = await this.vcenter.machine(name);
    const says = async () => {
      const text = await readFile(serialLog, 'latin1').catch(() => '');
      return [...text.matchAll(/ROUSE boots (\d\d)\r\n/gu)].length || undefined;
    };
    return eventually(`${name} to boot`, says, 60_000, 50);
  }

  /** Unregisters and deletes by hand what a case has left in production. */
  async forget(name: string): Promise<void> {
    const driver = this.driver();
    const found = (await this.vcenter.machines()).filter((machine) => machine.name === name);
    for (const { id } of found) {
      await driver.powerOff(id, 'off');
      await driver.client.call('UnregisterVM', { type: 'VirtualMachine', id });
    }
    for (const left of await readdir(this.production)) {
      await rm(join(this.production, left), { recursive: true });
    }
    await driver.close();
  }
}

export interface MortalServer {
  readonly running: Running;
  readonly driver: VsphereHypervisor;
  readonly life: Mortality;
}

/** `esx2` has place for two exports. */
const maxVolumes: Readonly<Record<string, number>> = { esx2: 2 };

function inventoryOf(hosts: readonly [Host, Host], directory: string): Inventory {
  const members = hosts.map(({ name, ipv4, ipv6 }) => ({
    name,
    netns: name,
    addresses: [ipv4, ipv6],
    ...(maxVolumes[name] === undefined ? {} : { maxVolumes: maxVolumes[name] }),
  }));
  const datastores = [
    { name: 'production', directory: join(directory, 'production') },
    { name: 'helpers', directory: join(directory, 'helpers') },
  ];
  const clusters = [{ name: 'cluster1', hosts: members }];
  const machines = [{ vmx: '[helpers] helper/helper.vmx', host: 'esx1' }];
  return { datacenters: [{ name: 'dc1', clusters, datastores, machines }] };
}

/** Somebody's machine: a boot sector as well, which is off until it is needed. */
export async function writeHelper(directory: string): Promise<void> {
  const image = join(directory, 'helper.img');
  await buildBootSector({ path: image });
  const where = join(directory, 'helpers');
  const settings = { memsize: '16' };
  await writeMachine({ directory: where, name: 'helper', disks: [image], settings });
}

async function startProxy(data: string): Promise<{ proxy: Proxy; close(): Promise<void> }> {
  await mkdir(join(data, 'run'), { recursive: true });
  const config = configOf({ data, portmap: 'bind', listen: ['0.0.0.0', '::'] });
  const { pino } = await import('pino');
  const log = pino({ level: 'silent' });
  const about = { log, version: 'test', clock: systemClock, random: systemRandom };
  const opened = await openProxy({ config, ...about });
  const http = httpClient({ url: `unix:${config.proxySocket}`, peer: 'proxy', repeatable: true });
  const proxy = proxyClient((route, body, timeoutMs) => http.post(route, body, { timeoutMs }));
  return {
    proxy,
    close: async () => {
      http.close();
      await opened.close();
    },
  };
}

/** The boot sector with a .vmx of its own, as a saveset. */
async function storeMachine(proxy: Proxy, directory: string): Promise<Saveset> {
  const image = join(directory, 'boots.img');
  await buildBootSector({ path: image });
  const vmx = await writeMachine({
    directory: join(directory, 'source'),
    name: 'web01',
    disks: [image],
    settings: { memsize: '16' },
  });
  await proxy.createMtree('main', 'lz4');
  const spec = {
    kind: 'import',
    id: 'import-1',
    mtree: 'main',
    machine: { id: 'uuid-of-web01', name: 'web01' },
    disks: [{ name: 'scsi0:0', path: image }],
    configuration: join(directory, 'source', vmx),
    takenAtMs: 1,
  } as const;
  await runJob(proxy, spec, new AbortController().signal, () => undefined);
  const [saveset] = await proxy.savesets();
  if (saveset === undefined) throw new Error('nothing was stored');
  return saveset;
}
