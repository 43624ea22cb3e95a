import type { RecoveryRow } from '../../catalog/recoveries.ts';
import { RouseError } from '../../errors.ts';
import type { Hypervisor } from '../../hypervisors/port.ts';
import { formatBytes } from '../../lib/text.ts';
import { refuseMounted } from '../attaching.ts';
import type { ExportView } from '../../proxy/port.ts';
import { removeExport, type CloseInput, useOf } from '../cleaning.ts';
import { isMounted } from '../plan.ts';
import type { Hand, Thing } from './hand.ts';
import type { ReconcileWorld } from './reconcile.ts';
import type { Seen, SeenCase, SeenDatastore, SeenDisk, SeenMachine } from './seen.ts';

/** What is there of a recovery that has ended, or that this server does not know. */
export interface Leftovers {
  readonly id: string;
  /** Undefined: this server knows no such recovery. */
  readonly row: RecoveryRow | undefined;
  readonly seen: SeenCase;
  readonly all: Seen;
}

/**
 * Takes leftovers away in the only safe order, that of cleaning.ts: machines and disks let go of the
 * datastore, hosts unmount it, the export goes once nobody can be using it, the clone goes last.
 * What stays keeps everything below it.
 */
export async function clearLeftovers(
  world: ReconcileWorld,
  hand: Hand,
  left: Leftovers,
): Promise<void> {
  const work = new Clearing(world, hand, left);
  for (const machine of left.seen.machines) await work.machine(machine);
  for (const disk of left.seen.disks) await work.disk(disk);
  for (const datastore of left.seen.datastores) await work.datastore(datastore);
  for (const shared of left.seen.exports) await work.export(shared);
  for (const clone of left.seen.clones) await work.clone(clone);
}

class Clearing {
  readonly #world: ReconcileWorld;
  readonly #hand: Hand;
  readonly #left: Leftovers;
  readonly #why: string;
  /** What still uses the export. */
  readonly #users: string[] = [];
  /** Proxies that still export the clone. */
  readonly #exporting = new Set<string>();

  constructor(world: ReconcileWorld, hand: Hand, left: Leftovers) {
    this.#world = world;
    this.#hand = hand;
    this.#left = left;
    const { id, row } = left;
    this.#why =
      row === undefined ? `no recovery ${id} is known` : `its recovery ${id} is ${row.state}`;
  }

  #thing(kind: Thing['kind'], name: string, where: string): Thing {
    return { kind, name, where, recovery: this.#left.id };
  }

  /** A relocated machine is production; one that runs is somebody's, whatever we know of it. */
  async machine({ at, id, name, power, onExport }: SeenMachine): Promise<void> {
    if (onExport.length === 0) return;
    const thing = this.#thing('machine', name, at.name);
    if (power !== 'off') {
      this.#users.push(name);
      const how = 'Move its disks to other storage there, or power it off and reconcile again.';
      const note = `It is ${power} and is not switched off. ${how}`;
      this.#hand.leave(thing, this.#why, note);
      return;
    }
    const isGone = await this.#hand.mend(thing, this.#why, 'unregistered', async () => {
      await refuseMoved(at.driver, id, onExport);
      await at.driver.unregister(id);
    });
    if (!isGone) this.#users.push(name);
  }

  /** Somebody's machine: nothing of it but our disk is touched, and not while its guest uses it. */
  async disk({ at, machineId, machineName, power, device }: SeenDisk): Promise<void> {
    const name = `${device} of ${machineName}`;
    const thing = this.#thing('disk', name, at.name);
    const agent = power === 'off' ? [] : await at.driver.guestDisks(machineId);
    // Tools that tell mounts only do not know of volume groups and raw devices.
    const isSeen = agent?.some((seen) => seen.name === device && seen.seenAs !== null) === true;
    const isKnown = power === 'off' || isSeen;
    if (!isKnown && !this.#hand.isForced) {
      this.#users.push(machineName);
      const note = `No agent tells for sure whether the guest uses it. Unmount it there, then: ${force}`;
      this.#hand.leave(thing, this.#why, note);
      return;
    }
    const machine = { id: machineId, name: machineName };
    const look = async () => {
      if (power !== 'off') await refuseMounted(at.driver, machine, [device]);
    };
    const isGone = await this.#hand.mend(thing, this.#why, 'detached', {
      look,
      work: async () => {
        await look();
        await at.driver.detachDisk(machineId, device);
      },
    });
    if (!isGone) this.#users.push(machineName);
  }

  async datastore({ at, datastore, isNamed, isProven }: SeenDatastore): Promise<void> {
    const { name, location, hostIds } = datastore;
    const thing = this.#thing('datastore', name, at.name);
    if (!isProven) {
      const note = `It shows ${location}, which is no export of ours: it is left alone.`;
      this.#hand.leave(thing, `it is called like one of ours, and ${this.#why}`, note);
      return;
    }
    if (!isNamed || this.#users.length > 0) {
      const who = isNamed
        ? `${this.#users.join(', ')} still uses it.`
        : 'Somebody else mounted it.';
      this.#users.push(`datastore ${name}`);
      this.#hand.leave(thing, this.#why, `${who} Unmount it there when nothing uses it.`);
      return;
    }
    const isGone = await this.#hand.mend(thing, this.#why, 'unmounted', async () => {
      for (const host of hostIds) await at.driver.unmountDatastore(host, name);
    });
    if (!isGone) this.#users.push(`datastore ${name}`);
  }

  async export({ proxy, view }: SeenCase['exports'][number]): Promise<void> {
    const thing = this.#thing('export', view.path, proxy.name);
    const doubt = this.#doubtAboutExport(view);
    if (doubt !== undefined) {
      this.#exporting.add(proxy.name);
      this.#hand.leave(thing, this.#why, doubt);
      return;
    }
    const isGone = await this.#hand.mend(thing, this.#why, 'no longer exported', async () => {
      const { clock } = this.#world;
      const { signal } = this.#hand;
      await removeExport(proxy, view.cloneId, { clock, signal, mustBeSilent: true });
    });
    if (!isGone) this.#exporting.add(proxy.name);
  }

  /** In doubt the export stays: a host that loses a datastore it uses is worse off. */
  #doubtAboutExport(view: ExportView): string | undefined {
    const { row, seen, all } = this.#left;
    if (this.#users.length > 0) return `Still used by ${this.#users.join(', ')}.`;
    const away = all.unreachable.filter(
      ({ kind, id }) => kind === 'hypervisor' && (row === undefined || row.hypervisorId === id),
    );
    if (away.length > 0 && (row === undefined || this.#isMounted(row))) {
      const names = away.map(({ name }) => name).join(', ');
      return `Nobody can tell whether ${names} uses it: it does not answer.`;
    }
    const isTraced = seen.machines.length + seen.disks.length + seen.datastores.length > 0;
    const isHosts = row === undefined ? isTraced : this.#isMounted(row);
    if (isHosts || this.#hand.isForced) return undefined;
    const use = useOf(view, this.#world.clock.now());
    return use === undefined
      ? undefined
      : `In doubt it stays until it was silent for a day: ${use}. If nobody needs it: ${force}`;
  }

  #isMounted(row: RecoveryRow): boolean {
    return isMounted(this.#world.inputOf(row));
  }

  async clone({ proxy, view }: SeenCase['clones'][number]): Promise<void> {
    const thing = this.#thing('clone', view.cloneId, proxy.name);
    if (this.#exporting.has(proxy.name)) {
      this.#hand.leave(thing, this.#why, 'It is still exported.');
      return;
    }
    const written = formatBytes(view.writtenBytes);
    if (this.#left.row === undefined && view.writtenBytes > 0 && !this.#hand.isForced) {
      const note = `It holds ${written} that were written. To discard them: ${force}`;
      this.#hand.leave(thing, this.#why, note);
      return;
    }
    if (await this.#isWanted()) {
      const note = `What was written shall be kept. Try again: rouse cancel ${this.#left.id}`;
      this.#hand.leave(thing, this.#why, note);
      return;
    }
    await this.#hand.mend(thing, this.#why, 'deleted', async () => {
      await proxy.calls.deleteClone(view.cloneId);
    });
  }

  /** A clean-up that gave up half way was to keep the writes. */
  async #isWanted(): Promise<boolean> {
    const { id, row } = this.#left;
    if (row?.state !== 'failed') return false;
    const runs = await this.#world.engine.runs({ subject: id, kind: 'recovery.close' });
    const last = runs.at(-1)?.input as CloseInput | undefined;
    return last?.keepWrites === true;
  }
}

/** It may have been relocated since it was looked at. */
async function refuseMoved(
  driver: Hypervisor,
  machineId: string,
  onExport: readonly string[],
): Promise<void> {
  const { disks } = await driver.traces();
  const isThere = disks.some(
    (disk) => disk.machineId === machineId && onExport.includes(disk.location),
  );
  if (!isThere) throw new RouseError('wrong-state', 'its disks have just moved elsewhere');
}

const force = 'rouse reconcile --force';
