import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { isRouseError } from '../errors.ts';
import { describeDomain } from './libvirt-xml.ts';
import { describeVmx, parseVmx } from './vmx.ts';

const vmx = `.encoding = "UTF-8"
# a comment stays
config.version = "8"
displayName = "web |22one|22"
uuid.bios = "56 4d aa bb cc dd ee ff-00 11 22 33 44 55 66 77"
scsi0.present = "TRUE"
scsi0:0.fileName = "web.vmdk"
scsi0:0.present = "TRUE"
scsi0:1.fileName = "web_1.vmdk"
scsi0:1.present = "FALSE"
sata0:0.fileName = "install.iso"
sata0:0.deviceType = "cdrom-image"
nvram = "web.nvram"
some line that is no pair
unknown.key = "kept"
`;

test('.vmx: untouched, it is written as it was read', () => {
  assert.equal(parseVmx(vmx, 'web.vmx').toString(), vmx);
});

test('.vmx: what a backup needs is found', () => {
  assert.deepEqual(describeVmx(parseVmx(vmx, 'web.vmx'), 'web.vmx'), {
    name: 'web "one"',
    uuid: '564daabb-ccdd-eeff-0011-223344556677',
    disks: [{ slot: 'scsi0:0', fileName: 'web.vmdk' }],
    nvram: 'web.nvram',
  });
});

test('.vmx: keys are changed in place, added at the end, removed by pattern', () => {
  const parsed = parseVmx(vmx, 'web.vmx');
  parsed.set('DISPLAYNAME', 'copy');
  parsed.set('uuid.action', 'create');
  parsed.remove(/^scsi0:1\./);
  const lines = parsed.toString().split('\n');
  assert.equal(lines[3], 'displayName = "copy"');
  assert.equal(lines.at(-2), 'uuid.action = "create"');
  assert.ok(!parsed.toString().includes('scsi0:1'));
  assert.equal(parsed.get('Unknown.Key'), 'kept');
});

test('.vmx: any value survives being written and read', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (value) => {
      const parsed = parseVmx('a = "b"', 'x');
      parsed.set('key', value);
      assert.equal(parseVmx(parsed.toString(), 'x').get('key'), value);
    }),
  );
});

test('.vmx: separators that only Unicode knows are part of a value', () => {
  const parsed = parseVmx('a = "b"', 'x');
  parsed.set('key', 'one\u2028two\u2029');
  assert.equal(parseVmx(parsed.toString(), 'x').get('key'), 'one\u2028two\u2029');
});

test('.vmx: what is none is refused', () => {
  for (const text of ['', 'hello', '\0\0', '<xml/>']) {
    assert.throws(
      () => parseVmx(text, 'x.vmx'),
      (error) => isRouseError(error, 'corrupt-data'),
    );
  }
});

const domain = `<?xml version="1.0"?>
<domain type='qemu'>
  <name>db &amp; web</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <os><nvram template='/usr/share/OVMF.fd'>/var/lib/nvram/db.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/db&apos;s.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/db'/><target dev='vdb'/></disk>
    <disk type='network' device='disk'><driver type='raw'/><source protocol='nbd'/><target dev='vdc'/></disk>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/><model type='virtio'/></interface>
  </devices>
</domain>`;

test('domain: name, identity, disks, interfaces and nvram are found', () => {
  assert.deepEqual(describeDomain(domain, 'db.xml'), {
    name: 'db & web',
    uuid: '11111111-2222-3333-4444-555555555555',
    nvram: '/var/lib/nvram/db.fd',
    memoryBytes: undefined,
    processors: undefined,
    isEfi: false,
    interfaces: [{ mac: '52:54:00:00:00:01', network: 'default', model: 'virtio' }],
    disks: [
      {
        target: 'vda',
        source: "/images/db's.qcow2",
        type: 'file',
        format: 'qcow2',
        isReadOnly: false,
      },
      { target: 'vdb', source: '/dev/vg/db', type: 'block', format: undefined, isReadOnly: false },
      { target: 'vdc', source: undefined, type: 'network', format: 'raw', isReadOnly: false },
    ],
  });
});

test('domain: hostile or broken text is one typed error', () => {
  const bombs = [
    '',
    'not xml',
    '<domain><name>x</domain>',
    '<other/>',
    '<domain/>',
    '<!DOCTYPE x [<!ENTITY a "b">]><domain><name>&a;</name></domain>',
    `${'<domain>'.repeat(5000)}${'</domain>'.repeat(5000)}`,
    `<domain><name>x</name>${'<a>'.repeat(500)}${'</a>'.repeat(500)}</domain>`,
  ];
  for (const text of bombs) {
    assert.throws(
      () => describeDomain(text, 'x.xml'),
      (error) => isRouseError(error, 'corrupt-data'),
      text.slice(0, 60),
    );
  }
});
