import { chmod, mkdir, rm, stat } from 'node:fs/promises';
import { posix } from 'node:path';
import { RouseError, isRouseError } from '../../errors.ts';
import { runChecked } from '../../lib/command.ts';
import { libvirtLimits } from '../../limits.ts';
import type { MachineDetail, MachineSummary, PowerState, RegisterSpec } from '../port.ts';
import { domainText, domainXml, placeOf } from './context.ts';
import type { LibvirtContext } from './context.ts';
import { qemuNfsUrl } from './datastores.ts';
import {
  blockStats,
  domainDisks,
  domainNetworks,
  liesOn,
  parseStats,
  powerOf,
  readMark,
} from './domain.ts';
import type { DatastorePlace, DomainDisk } from './domain.ts';
import { pictureToPng } from './png.ts';
import { attribute, child, childrenNamed, find, parseXml, remove, text, writeXml } from './xml.ts';
import type { XmlElement } from './xml.ts';

export async function listMachines(
  context: LibvirtContext,
  hostId: string,
): Promise<MachineSummary[]> {
  const [list, stats] = await Promise.all([
    context.virsh.run(['list', '--all', '--uuid', '--name']),
    context.virsh.run(['domstats', '--state']),
  ]);
  const states = parseStats(stats);
  return list
    .split('\n')
    .map((line) => /^(\S{36})\s+(.*\S)\s*$/u.exec(line))
    .filter((match) => match !== null)
    .map(([, uuid = '', name = '']) => ({
      id: uuid,
      uuid,
      name,
      hostId,
      power: powerOf(states.get(name)?.get('state.state') ?? '0'),
    }));
}

export async function machineDetail(
  context: LibvirtContext,
  hostId: string,
  idOrName: string,
): Promise<MachineDetail> {
  const configuration = await domainText(context, idOrName, '--inactive', '--security-info');
  const power = await powerState(context, idOrName);
  const live = await domainXml(context, idOrName);
  const uuid = text(child(live, 'uuid'));
  const sizes = await diskSizes(context, uuid, live, power);
  return {
    id: uuid,
    uuid,
    name: text(child(live, 'name')),
    hostId,
    power,
    configuration,
    networks: domainNetworks(live),
    disks: domainDisks(live)
      .filter((disk) => disk.device === 'disk')
      .map(({ name, format, source, serial }) => ({
        name,
        format,
        source,
        sizeBytes: sizes.get(name) ?? 0,
        ...(serial === '' ? {} : { serial }),
      })),
  };
}

/** Running: the emulator knows. Off: libvirt looks into files; exports are known by our mark. */
export async function diskSizes(
  context: LibvirtContext,
  machine: string,
  domain: XmlElement,
  power: PowerState,
): Promise<Map<string, number>> {
  if (power !== 'off') {
    const stats = parseStats(await context.virsh.run(['domstats', '--block', machine]));
    const blocks = blockStats([...stats.values()][0] ?? new Map<string, string>());
    return new Map([...blocks].map(([name, block]) => [name, block.capacityBytes]));
  }
  const marked = readMark(domain)?.sizes ?? new Map<string, number>();
  const sizes = new Map<string, number>();
  for (const disk of domainDisks(domain)) {
    if (disk.device !== 'disk' || disk.source === '') continue;
    const said = await context.virsh.runUnless(/./u, ['domblkinfo', machine, disk.name]);
    const capacity = Number(/^Capacity:\s+(\d+)/mu.exec(said ?? '')?.[1] ?? 0);
    sizes.set(disk.name, capacity > 0 ? capacity : (marked.get(disk.name) ?? 0));
  }
  return sizes;
}

export async function powerState(context: LibvirtContext, machine: string): Promise<PowerState> {
  return powerOf(await context.virsh.run(['domstate', '--domain', machine]));
}

/** Machines with a disk on that export, in what runs or in what would start next. */
export async function usersOf(
  context: LibvirtContext,
  place: DatastorePlace,
): Promise<readonly string[]> {
  return machinesWithDisk(context, (disk) => liesOn(disk.source, place));
}

export async function machinesWithDisk(
  context: LibvirtContext,
  wanted: (disk: DomainDisk) => boolean,
): Promise<readonly string[]> {
  const users: string[] = [];
  for (const machine of await listMachines(context, '')) {
    try {
      const live = domainDisks(await domainXml(context, machine.id));
      const stored = domainDisks(await domainXml(context, machine.id, '--inactive'));
      const mirrors = live.flatMap((disk) => mirrorOf(disk));
      if ([...live, ...stored, ...mirrors].some(wanted)) users.push(machine.id);
    } catch (error) {
      // Undefined by someone since the list was made: it uses nothing any more.
      if (!isRouseError(error, 'not-found')) throw error;
    }
  }
  return users;
}

/** The target of a running copy counts as a disk in use. */
function mirrorOf(disk: DomainDisk): DomainDisk[] {
  const source = find(disk.node, 'mirror', 'source');
  const path = attribute(source, 'file') ?? attribute(source, 'dev');
  return path === undefined ? [] : [{ ...disk, source: path, path }];
}

export async function register(context: LibvirtContext, spec: RegisterSpec): Promise<string> {
  const domain = parseXml(spec.configured.text, `the configuration of ${spec.name}`);
  const uuid = text(child(domain, 'uuid'));
  for (const other of await listMachines(context, '')) {
    if (other.name !== spec.name && other.uuid !== uuid) continue;
    const mark = readMark(await domainXml(context, other.id, '--inactive'))?.mark;
    if (mark === spec.mark) return other.id;
    throw new RouseError(
      'already-exists',
      `a machine ${other.name} (${other.uuid}) exists and is not of this recovery`,
      { advice: 'Choose another name and a new identity, or remove that machine.' },
    );
  }
  await unplugFromMissingNetworks(context, domain);
  const nvram = await bringNvram(context, spec, domain);
  try {
    await context.virsh.withXml([writeXml(domain)], (file = '') => ['define', '--file', file]);
  } catch (error) {
    if (nvram !== undefined) await rm(nvram, { force: true });
    throw error;
  }
  return uuid;
}

/** One look at each machine: marks have no index in libvirt. */
export async function findMarked(
  context: LibvirtContext,
  mark: string,
): Promise<string | undefined> {
  for (const machine of await listMachines(context, '')) {
    try {
      const domain = await domainXml(context, machine.id, '--inactive');
      if (readMark(domain)?.mark === mark) return machine.id;
    } catch (error) {
      // Undefined by someone since the list was made.
      if (!isRouseError(error, 'not-found')) throw error;
    }
  }
  return undefined;
}

/** An unplugged card whose network this host lacks would still keep the machine from starting. */
async function unplugFromMissingNetworks(
  context: LibvirtContext,
  domain: XmlElement,
): Promise<void> {
  const cards = childrenNamed(child(domain, 'devices'), 'interface').filter(
    (card) => attribute(child(card, 'link'), 'state') === 'down',
  );
  if (cards.length === 0) return;
  const networks = (await networkNames(context)).map((network) => network.name);
  for (const card of cards) {
    const network = attribute(child(card, 'source'), 'network');
    const isHere = network !== undefined && networks.includes(network);
    if (isHere || attribute(card, 'type') === 'user') continue;
    card.attributes.set('type', 'user');
    remove(card, 'source', 'virtualport', 'filterref', 'vlan', 'bandwidth', 'port');
  }
}

export async function networkNames(
  context: LibvirtContext,
): Promise<readonly { id: string; name: string }[]> {
  const listed = await context.virsh.runUnless(/no connection driver|not supported/u, [
    'net-list',
    '--all',
    '--name',
  ]);
  const names = (listed ?? '').split('\n').map((name) => name.trim());
  return names.filter((name) => name !== '').map((name) => ({ id: name, name }));
}

/** Answers where the saved firmware variables lie on the host now, when there are any. */
async function bringNvram(
  context: LibvirtContext,
  spec: RegisterSpec,
  domain: XmlElement,
): Promise<string | undefined> {
  const path = text(find(domain, 'os', 'nvram'));
  const file = readMark(domain)?.nvram;
  if (file === undefined || path === '') return undefined;
  if (!context.virsh.isLocal) {
    throw new RouseError('hypervisor-unsupported', 'firmware variables cannot be sent to a host', {
      advice: 'Run a Rouse server on that host, or wake the machine on a local one.',
    });
  }
  await mkdir(posix.dirname(path), { recursive: true });
  // QEMU may run as another user: it must pass, not list.
  await chmod(posix.dirname(path), 0o711);
  const { mountPath } = placeOf(context, spec.datastore);
  const from =
    mountPath === undefined
      ? qemuNfsUrl(spec.datastore.server, `${spec.datastore.path}/${file}`)
      : `${mountPath}/${file}`;
  await runChecked('qemu-img', ['dd', '-f', 'raw', '-O', 'raw', `if=${from}`, `of=${path}`]);
  const { size } = await stat(path);
  if (size > libvirtLimits.nvramBytesMax) {
    throw new RouseError('bad-request', `the saved nvram has ${size} bytes, which is too much`);
  }
  return path;
}

export async function unregister(context: LibvirtContext, machine: string): Promise<void> {
  try {
    if ((await powerState(context, machine)) !== 'off') {
      throw new RouseError('wrong-state', `the machine ${machine} is running`, {
        advice: 'Power it off first.',
      });
    }
    const flags = ['--nvram', '--managed-save', '--checkpoints-metadata', '--snapshots-metadata'];
    await context.virsh.run(['undefine', '--domain', machine, ...flags]);
  } catch (error) {
    if (!isRouseError(error, 'not-found')) throw error;
  }
}

export async function powerOn(context: LibvirtContext, machine: string): Promise<void> {
  const power = await powerState(context, machine);
  if (power === 'paused') await context.virsh.run(['resume', '--domain', machine]);
  if (power === 'off') await context.virsh.runUnless(/already active/u, ['start', machine]);
}

export async function powerOff(
  context: LibvirtContext,
  machine: string,
  how: 'shutdown' | 'off',
  graceMs: number = libvirtLimits.shutdownGraceMs,
): Promise<void> {
  if ((await powerState(context, machine)) === 'off') return;
  if (how === 'shutdown') {
    await context.virsh.runUnless(/not running/u, ['shutdown', '--domain', machine]);
    for (let waited = 0; waited < graceMs; waited += libvirtLimits.powerPollMs) {
      if ((await powerState(context, machine)) === 'off') return;
      await context.clock.sleep(Math.min(libvirtLimits.powerPollMs, graceMs));
    }
  }
  await context.virsh.runUnless(/not running/u, ['destroy', '--domain', machine]);
}

export async function screenPicture(
  context: LibvirtContext,
  machine: string,
): Promise<Buffer | undefined> {
  if ((await powerState(context, machine)) === 'off') return undefined;
  const domain = await domainXml(context, machine);
  const video = find(domain, 'devices', 'video', 'model');
  if (video === undefined || attribute(video, 'type') === 'none') return undefined;
  const picture = await context.virsh.readingFile(libvirtLimits.screenBytesMax, (file) => [
    'screenshot',
    ...['--domain', machine, '--file', file],
  ]);
  return pictureToPng(picture);
}
