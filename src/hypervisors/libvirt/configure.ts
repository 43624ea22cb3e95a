import { posix } from 'node:path';
import type { ConfigureSpec, ConfiguredMachine } from '../port.ts';
import { defaultMachine } from './default-machine.ts';
import { domainDisks, writeMark } from './domain.ts';
import { rewriteHostParts } from './host-parts.ts';
import {
  attribute,
  child,
  childrenNamed,
  element,
  find,
  parseXml,
  remove,
  removeOne,
  replaceChild,
  setText,
  writeXml,
} from './xml.ts';
import type { XmlElement } from './xml.ts';

/** What the driver knows about the host, so that `configureDomain` stays pure. */
export interface HostChoices {
  readonly useKvm: boolean;
  /** Where the host's kernel mounted the export; undefined: QEMU's own NFS client. */
  readonly mountPath: string | undefined;
  /** Saved nvram is put there on the host: an NFS export cannot hold a firmware's flash. */
  readonly nvramDirectory: string;
}

/** Step 9: the saved domain, made fit for its new place. Pure. */
export function configureDomain(spec: ConfigureSpec, host: HostChoices): ConfiguredMachine {
  const changes: string[] = [];
  const say = (change: string) => void changes.push(change);
  const domain = startingPoint(spec, say);
  const oldName = child(domain, 'name')?.children.join('') ?? '';
  if (oldName !== spec.name) say(`the name is ${spec.name}`);
  setText(domain, 'name', spec.name);
  domain.attributes.delete('id');
  setIdentity(domain, spec, say);
  setAccelerator(domain, host.useKvm, say);
  setDisks(domain, spec, host, say);
  setNetworks(domain, spec, say);
  setFirmware(domain, spec, host, say);
  rewriteHostParts(domain, spec, say);
  addHotplugPorts(domain, say);
  const onDatastore = spec.disks.filter((disk) => disk.local === undefined);
  const saved = savedNvram(spec);
  const nvram = saved === undefined ? undefined : `${spec.folder}/${saved}`;
  writeMark(domain, spec.mark, spec.datastore, spec.disks, nvram);
  if (onDatastore.length > 0) say(`disks lie on ${spec.datastore.name}`);
  return { fileName: 'domain.xml', text: writeXml(domain), changes };
}

type Say = (change: string) => void;

function startingPoint(spec: ConfigureSpec, say: Say): XmlElement {
  if (spec.configuration === undefined) {
    say('no configuration was saved: a machine with 512 MiB, virtio disks and a screen is made');
    return defaultMachine(spec);
  }
  const root = parseXml(spec.configuration, `the saved configuration of ${spec.name}`);
  if (root.name === 'domain') return root;
  const inner = child(root, 'domain');
  if (inner !== undefined) return inner;
  say(`the saved configuration is a <${root.name}>, not a domain: a machine is made anew`);
  return defaultMachine(spec);
}

function setIdentity(domain: XmlElement, spec: ConfigureSpec, say: Say): void {
  const { keep, uuid } = spec.identity;
  if (keep && child(domain, 'uuid') !== undefined) return;
  setText(domain, 'uuid', uuid);
  say(`the UUID is ${uuid}`);
  const genid = child(domain, 'genid');
  if (genid !== undefined) {
    // An empty element makes libvirt create one: the guest learns that it is a copy.
    genid.children = [];
    say('the generation id is new');
  }
  const system = childrenNamed(child(domain, 'sysinfo'), 'system')[0];
  for (const entry of childrenNamed(system, 'entry')) {
    // libvirt refuses a SMBIOS UUID that differs from the domain's.
    if (attribute(entry, 'name') === 'uuid') entry.children = [uuid];
  }
}

function setAccelerator(domain: XmlElement, useKvm: boolean, say: Say): void {
  const before = attribute(domain, 'type') ?? 'kvm';
  domain.attributes.set('type', useKvm ? 'kvm' : 'qemu');
  if (useKvm) {
    if (before !== 'kvm') say('runs with KVM');
    return;
  }
  if (before !== 'qemu') say('runs in software emulation: this host has no usable KVM');
  const mode = attribute(child(domain, 'cpu'), 'mode') ?? 'custom';
  if (child(domain, 'cpu') !== undefined && before !== 'qemu') {
    const topology = find(domain, 'cpu', 'topology');
    replaceChild(domain, element('cpu', { mode: 'maximum' }, topology ? [topology] : []));
    say(`the processor is the emulator's own instead of ${mode}`);
  }
  remove(child(domain, 'features'), 'hyperv', 'kvm', 'pvspinlock');
  const clock = child(domain, 'clock');
  for (const timer of childrenNamed(clock, 'timer')) {
    const name = attribute(timer, 'name') ?? '';
    if (clock && ['kvmclock', 'hypervclock', 'tsc'].includes(name)) removeOne(clock, timer);
  }
}

function setDisks(domain: XmlElement, spec: ConfigureSpec, host: HostChoices, say: Say): void {
  const devices = devicesOf(domain);
  for (const disk of domainDisks(domain)) {
    const wanted = spec.disks.find((candidate) => candidate.name === disk.name);
    if (wanted !== undefined) {
      placeDisk(disk.node, spec, wanted, host);
    } else if (disk.device === 'cdrom') {
      if (disk.source !== '') say(`the drive ${disk.name} is empty: ${disk.source} is not here`);
      remove(disk.node, 'source', 'backingStore', 'mirror', 'auth', 'encryption');
      disk.node.attributes.set('type', 'file');
    } else {
      removeOne(devices, disk.node);
      say(`${disk.device} ${disk.name} is left out: it is not part of the backup`);
    }
  }
  const there = new Set(domainDisks(domain).map((disk) => disk.name));
  for (const wanted of spec.disks.filter((disk) => !there.has(disk.name))) {
    const target = element('target', { dev: wanted.name, bus: busOf(wanted.name) });
    const node = element('disk', { type: 'file', device: 'disk' }, [target]);
    placeDisk(node, spec, wanted, host);
    devices.children.push(node);
    if (spec.configuration !== undefined) say(`disk ${wanted.name} is added`);
  }
}

function placeDisk(
  node: XmlElement,
  spec: ConfigureSpec,
  disk: ConfigureSpec['disks'][number],
  host: HostChoices,
): void {
  const driver = driverOf(node, disk.local?.format ?? 'raw');
  remove(node, 'source', 'backingStore', 'mirror', 'auth', 'encryption', 'alias', 'transient');
  remove(node, 'shareable', 'driver');
  for (const name of ['snapshot', 'sgio', 'rawio']) node.attributes.delete(name);
  node.attributes.set('device', 'disk');
  const source = diskSource(spec.datastore, `${spec.folder}/${disk.file}`, host.mountPath);
  const placed = disk.local === undefined ? source : fileSource(disk.local.path);
  node.attributes.set('type', attribute(placed, 'file') === undefined ? 'network' : 'file');
  // A relocation's target inherits this: zeros that the export sends as data take no space there.
  if (disk.local === undefined) driver.attributes.set('detect_zeroes', 'unmap');
  node.children.unshift(driver, placed);
}

const keptDriverSettings = ['cache', 'iothread', 'queues', 'queue_size', 'error_policy', 'iommu'];

/** What a person tuned stays; what only fits the old storage (`io`, `copy_on_read`) does not. */
export function driverOf(disk: XmlElement, format: string): XmlElement {
  const driver = element('driver', { name: 'qemu', type: format, discard: 'unmap' });
  for (const name of keptDriverSettings) {
    const value = attribute(child(disk, 'driver'), name);
    // `unsafe` loses what the guest synced: no place for a recovered machine.
    if (value !== undefined && value !== 'unsafe') driver.attributes.set(name, value);
  }
  return driver;
}

/** How QEMU opens a file of the export. */
export function diskSource(
  datastore: { readonly server: string; readonly path: string },
  file: string,
  mountPath: string | undefined,
): XmlElement {
  if (mountPath !== undefined) return fileSource(`${mountPath}/${file}`);
  return element('source', { protocol: 'nfs', name: `${datastore.path}/${file}` }, [
    element('host', { name: datastore.server }),
    // The export's owner is root, whatever user QEMU runs as.
    element('identity', { user: '+0', group: '+0' }),
  ]);
}

function fileSource(path: string): XmlElement {
  return element('source', { file: path });
}

function busOf(name: string): string {
  if (name.startsWith('vd')) return 'virtio';
  if (name.startsWith('hd')) return 'ide';
  return 'sata';
}

function setNetworks(domain: XmlElement, spec: ConfigureSpec, say: Say): void {
  const devices = devicesOf(domain);
  for (const node of childrenNamed(devices, 'interface')) {
    if (['hostdev', 'vdpa'].includes(attribute(node, 'type') ?? '')) {
      removeOne(devices, node);
      say('a network card passed through from the old host is left out');
    }
  }
  const cards = childrenNamed(devices, 'interface');
  for (const [index, node] of cards.entries()) {
    remove(node, 'target', 'alias', 'backend', 'guest');
    child(node, 'source')?.attributes.delete('portid');
    const mac = spec.identity.macs[index];
    if (!spec.identity.keep) {
      if (mac === undefined) remove(node, 'mac');
      else replaceChild(node, element('mac', { address: mac }));
    }
    remove(node, 'link');
    if (!spec.connectNetworks) node.children.push(element('link', { state: 'down' }));
  }
  if (cards.length === 0) return;
  if (!spec.identity.keep) say('network cards have new addresses');
  if (!spec.connectNetworks) say('network cards are unplugged');
}

function setFirmware(domain: XmlElement, spec: ConfigureSpec, host: HostChoices, say: Say): void {
  const os = child(domain, 'os');
  const nvram = child(os, 'nvram');
  if (os === undefined || nvram === undefined) return;
  nvram.attributes.delete('type');
  if (savedNvram(spec) === undefined) {
    nvram.children = [];
    if (nvram.attributes.size === 0) remove(os, 'nvram');
    say('the firmware begins with fresh variables');
    return;
  }
  const uuid = child(domain, 'uuid')?.children.join('') ?? spec.identity.uuid;
  // With the file in place libvirt needs no template, which may not exist on this host.
  nvram.attributes.clear();
  nvram.children = [posix.join(host.nvramDirectory, `${uuid}.fd`)];
  say('the firmware has its saved variables');
}

/** A full restore serves no export from which the variables could be fetched. */
function savedNvram(spec: ConfigureSpec): string | undefined {
  return spec.disks.every((disk) => disk.local !== undefined) ? undefined : spec.nvram;
}

/** Spare ports of a q35 machine, without which a running guest takes no new virtio disk. */
const sparePortsMin = 2;

function addHotplugPorts(domain: XmlElement, say: Say): void {
  const machine = attribute(find(domain, 'os', 'type'), 'machine') ?? '';
  if (!machine.includes('q35')) return;
  const devices = devicesOf(domain);
  const controllers = childrenNamed(devices, 'controller');
  if (!controllers.some((node) => attribute(node, 'model') === 'pcie-root')) {
    // Without the root at index 0, libvirt gives that index to one of the ports.
    const root = element('controller', { type: 'pci', index: '0', model: 'pcie-root' });
    devices.children.push(root);
  }
  const ports = controllers.filter((node) => attribute(node, 'model') === 'pcie-root-port');
  const taken = new Set(
    devices.children
      .filter((node) => typeof node !== 'string')
      .map((node) => attribute(child(node, 'address'), 'bus')),
  );
  const isFree = (port: XmlElement) =>
    !taken.has(
      `0x${Number(attribute(port, 'index') ?? 0)
        .toString(16)
        .padStart(2, '0')}`,
    );
  const free = ports.filter(isFree).length;
  // A machine never started has no addresses yet: libvirt then adds ports by need.
  const missing = ports.length > 0 && taken.size > 1 ? sparePortsMin - free : sparePortsMin;
  for (let added = 0; added < missing; added += 1) {
    devices.children.push(element('controller', { type: 'pci', model: 'pcie-root-port' }));
  }
  if (missing > 0) say(`${missing} free PCI ports are there for more disks`);
}

function devicesOf(domain: XmlElement): XmlElement {
  const devices = child(domain, 'devices');
  if (devices !== undefined) return devices;
  const made = element('devices');
  domain.children.push(made);
  return made;
}
