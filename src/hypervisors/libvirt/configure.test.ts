import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ConfigureSpec } from '../port.ts';
import { configureDomain } from './configure.ts';
import type { HostChoices } from './configure.ts';
import { domainDisks, domainNetworks, readMark } from './domain.ts';
import { attribute, child, childrenNamed, find, parseXml, text } from './xml.ts';
import type { XmlElement } from './xml.ts';

/** A production machine with about everything that names things of its old host. */
const saved = `<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name><uuid>6a3d0e6e-2b1f-4bd3-9d6c-a9e2c5f0a111</uuid>
  <genid>9a3d0e6e-2b1f-4bd3-9d6c-a9e2c5f0a111</genid>
  <title>Shop &amp; stock</title>
  <metadata><other:os xmlns:other='http://example.org/os'><other:id>debian</other:id></other:os></metadata>
  <memory unit='KiB'>4194304</memory><vcpu placement='static' cpuset='4-7'>2</vcpu>
  <cputune><shares>2048</shares><vcpupin vcpu='0' cpuset='4'/></cputune>
  <numatune><memory mode='strict' nodeset='1'/></numatune>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web01.fd</nvram></os>
  <features><acpi/><hyperv><relaxed state='on'/></hyperv></features>
  <cpu mode='host-passthrough'><topology sockets='1' dies='1' cores='2' threads='1'/></cpu>
  <clock offset='utc'><timer name='kvmclock' present='yes'/><timer name='rtc'/></clock>
  <devices>
    <emulator>/opt/old/qemu-kvm</emulator>
    <disk type='file' device='disk' snapshot='external'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>
      <source file='/images/web01.qcow2' index='2'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file'><format type='qcow2'/><source file='/images/base.qcow2'/></backingStore>
      <target dev='vda' bus='virtio'/><serial>S1</serial><boot order='1'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/scratch'/>
      <target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/debian.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='4' model='pcie-root-port'/>
    <interface type='bridge'><mac address='52:54:00:01:02:03'/><source bridge='br0' portid='x'/>
      <target dev='vnet3'/><model type='virtio'/></interface>
    <interface type='network'><mac address='52:54:00:01:02:04'/><source network='lan'/></interface>
    <hostdev mode='subsystem' type='pci'><source><address bus='0x65'/></source></hostdev>
    <serial type='file'><source path='/var/log/web01.log' append='on'/></serial>
    <channel type='unix'><source mode='bind' path='/run/agent.sock'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5907' autoport='no' listen='0.0.0.0'/>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'/>
  <qemu:commandline><qemu:arg value='-no-hpet'/></qemu:commandline>
</domain>`;

const spec: ConfigureSpec = {
  configuration: saved,
  name: 'web01-copy',
  datastore: {
    name: 'rouse-1',
    server: '10.0.0.5',
    path: '/default/Recover-a-1',
    nfsPort: 2049,
    mountPort: 2049,
  },
  folder: 'web01',
  disks: [{ name: 'vda', file: 'vda-flat.vmdk', sizeBytes: 1 << 30 }],
  nvram: 'nvram.fd',
  identity: {
    keep: false,
    uuid: '11111111-2222-4333-8444-555555555555',
    macs: ['52:54:00:aa:00:01', '52:54:00:aa:00:02'],
  },
  connectNetworks: false,
  mark: 'recovery-1',
};
const host: HostChoices = { useKvm: false, mountPath: undefined, nvramDirectory: '/state/nvram' };

function configured(change: Partial<ConfigureSpec> = {}, where: Partial<HostChoices> = {}) {
  const machine = configureDomain({ ...spec, ...change }, { ...host, ...where });
  return { ...machine, domain: parseXml(machine.text, 'the result') };
}

function devices(domain: XmlElement, name: string): XmlElement[] {
  return childrenNamed(child(domain, 'devices'), name);
}

test('a copy gets its own name, identity and mark, and says so', () => {
  const { domain, changes, fileName } = configured();
  assert.equal(fileName, 'domain.xml');
  assert.equal(text(child(domain, 'name')), 'web01-copy');
  assert.equal(text(child(domain, 'uuid')), spec.identity.uuid);
  assert.equal(text(child(domain, 'genid')), '');
  assert.equal(attribute(domain, 'id'), undefined);
  assert.equal(text(child(domain, 'title')), 'Shop & stock');
  assert.deepEqual(readMark(domain), {
    mark: 'recovery-1',
    datastore: 'rouse-1',
    location: '10.0.0.5:/default/Recover-a-1',
    sizes: new Map([['vda', 1 << 30]]),
    nvram: 'web01/nvram.fd',
  });
  assert.ok(find(domain, 'metadata', 'other:os'), 'metadata of others stays');
  assert.ok(find(domain, 'qemu:commandline'), 'extensions stay');
  assert.deepEqual(domainNetworks(domain), [
    { mac: '52:54:00:aa:00:01', network: 'br0', connected: false },
    { mac: '52:54:00:aa:00:02', network: 'lan', connected: false },
  ]);
  assert.ok(changes.includes('the UUID is 11111111-2222-4333-8444-555555555555'));
  assert.ok(changes.includes('network cards are unplugged'));
});

test('disks lie on the export, others are left out, drives are empty', () => {
  const { domain, changes } = configured();
  const disks = domainDisks(domain);
  assert.deepEqual(
    disks.map(({ name, device, format, source }) => ({ name, device, format, source })),
    [
      {
        name: 'vda',
        device: 'disk',
        format: 'raw',
        source: 'nfs://10.0.0.5/default/Recover-a-1/web01/vda-flat.vmdk',
      },
      { name: 'sda', device: 'cdrom', format: 'raw', source: '' },
    ],
  );
  const vda = disks[0]?.node;
  assert.equal(child(vda, 'backingStore'), undefined);
  assert.equal(attribute(child(vda, 'driver'), 'cache'), 'none');
  assert.equal(attribute(child(vda, 'driver'), 'io'), undefined);
  assert.equal(attribute(child(vda, 'address'), 'bus'), '0x04');
  assert.equal(text(child(vda, 'serial')), 'S1');
  assert.ok(changes.some((change) => change.startsWith('disk vdb is left out')));
  assert.ok(changes.some((change) => change.includes('/iso/debian.iso')));
});

test('a mounted export and a restored disk are files', () => {
  const mounted = configured({}, { mountPath: '/mnt/rouse-1' });
  assert.equal(domainDisks(mounted.domain)[0]?.path, '/mnt/rouse-1/web01/vda-flat.vmdk');
  const local = { path: '/production/web01-vda.qcow2', format: 'qcow2' } as const;
  const restored = configured({ disks: [{ ...disk, local }] });
  const { path, format } = domainDisks(restored.domain)[0] ?? {};
  assert.deepEqual({ path, format }, local);
});

const disk = { name: 'vda', file: 'vda-flat.vmdk', sizeBytes: 1 << 30 };

test('without KVM the processor and clocks are those of the emulator', () => {
  const { domain } = configured();
  assert.equal(attribute(domain, 'type'), 'qemu');
  assert.equal(attribute(child(domain, 'cpu'), 'mode'), 'maximum');
  assert.equal(attribute(find(domain, 'cpu', 'topology'), 'cores'), '2');
  assert.equal(find(domain, 'features', 'hyperv'), undefined);
  assert.deepEqual(
    childrenNamed(child(domain, 'clock'), 'timer').map((timer) => attribute(timer, 'name')),
    ['rtc'],
  );
  const withKvm = configured({}, { useKvm: true }).domain;
  assert.equal(attribute(withKvm, 'type'), 'kvm');
  assert.equal(attribute(child(withKvm, 'cpu'), 'mode'), 'host-passthrough');
});

test('what belongs to the old host does not follow', () => {
  const { domain, changes } = configured();
  for (const name of ['seclabel', 'numatune']) assert.equal(child(domain, name), undefined, name);
  for (const name of ['emulator', 'hostdev']) assert.deepEqual(devices(domain, name), [], name);
  assert.equal(find(domain, 'cputune', 'vcpupin'), undefined);
  assert.equal(text(find(domain, 'cputune', 'shares')), '2048');
  assert.equal(attribute(child(domain, 'vcpu'), 'cpuset'), undefined);
  const [card] = devices(domain, 'interface');
  assert.equal(child(card, 'target'), undefined);
  const log = attribute(find(domain, 'devices', 'serial', 'source'), 'path');
  assert.equal(log, '/var/log/web01-web01-copy.log');
  assert.equal(find(domain, 'devices', 'channel', 'source'), undefined);
  const graphics = devices(domain, 'graphics')[0];
  assert.equal(attribute(graphics, 'autoport'), 'yes');
  assert.equal(attribute(graphics, 'port'), undefined);
  assert.equal(attribute(find(domain, 'devices', 'vsock', 'cid'), 'auto'), 'yes');
  const ports = devices(domain, 'controller').filter(
    (node) => attribute(node, 'model') === 'pcie-root-port',
  );
  assert.equal(ports.length, 3);
  assert.ok(changes.length >= 12, changes.join('\n'));
});

test('firmware variables come along, or begin afresh', () => {
  const kept = find(configured().domain, 'os', 'nvram');
  assert.equal(text(kept), '/state/nvram/11111111-2222-4333-8444-555555555555.fd');
  const { nvram: _nvram, ...without } = spec;
  const fresh = configureDomain(without, host);
  const nvram = find(parseXml(fresh.text, 'fresh'), 'os', 'nvram');
  assert.equal(text(nvram), '');
  assert.equal(attribute(nvram, 'template'), '/usr/share/OVMF/OVMF_VARS_4M.fd');
});

test('a kept identity keeps UUID, MAC, cables and logs', () => {
  const identity = { ...spec.identity, keep: true };
  const { domain } = configured({ identity, connectNetworks: true, name: 'web01' });
  assert.equal(text(child(domain, 'uuid')), '6a3d0e6e-2b1f-4bd3-9d6c-a9e2c5f0a111');
  assert.deepEqual(domainNetworks(domain), [
    { mac: '52:54:00:01:02:03', network: 'br0', connected: true },
    { mac: '52:54:00:01:02:04', network: 'lan', connected: true },
  ]);
  const log = attribute(find(domain, 'devices', 'serial', 'source'), 'path');
  assert.equal(log, '/var/log/web01.log');
});

test('bare disks get a machine, and rewriting again changes nothing more', () => {
  const { domain, text: once } = configured({ configuration: undefined });
  assert.equal(text(find(domain, 'memory')), '512');
  assert.deepEqual(
    domainDisks(domain).map(({ name, bus }) => ({ name, bus })),
    [{ name: 'vda', bus: 'virtio' }],
  );
  const again = configured({ configuration: once });
  const settled = configured({ configuration: again.text });
  assert.equal(settled.text, again.text);
});

test('a configuration that is no domain is refused or replaced', () => {
  assert.throws(() => configured({ configuration: '<domain>' }), { code: 'bad-request' });
  const { changes } = configured({ configuration: '<vm><x/></vm>' });
  assert.ok(changes.some((change) => change.includes('<vm>')));
});
