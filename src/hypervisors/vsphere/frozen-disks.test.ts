import assert from 'node:assert/strict';
import { test } from 'node:test';
import { disksOf } from './devices.ts';
import { flatFileOf, knownDisks, labelsOf, leftOutWarnings } from './frozen-disks.ts';
import type { FrozenDisk } from './frozen-disks.ts';
import { parseVim } from './vim-xml.ts';

const flat = 'VirtualDiskFlatVer2BackingInfo';

function disk(file: string, backing: string, type = flat): FrozenDisk {
  const xml =
    '<val xmlns:i="http://www.w3.org/2001/XMLSchema-instance">' +
    '<device i:type="ParaVirtualSCSIController"><key>1000</key><busNumber>0</busNumber></device>' +
    `<device i:type="VirtualDisk"><key>2001</key><backing i:type="${type}">` +
    `<fileName>${file}</fileName>${backing}</backing><controllerKey>1000</controllerKey>` +
    '<unitNumber>1</unitNumber><capacityInKB>64</capacityInKB></device></val>';
  const [found] = disksOf(parseVim(xml, 'a test'));
  assert.ok(found !== undefined);
  return { ...found, changeId: '52 3c/4', uuid: '6000c29a' };
}

test('disks that snapshots leave out are named, with the reason', () => {
  const physical = 'VirtualDiskRawDiskMappingVer1BackingInfo';
  const left = [
    disk('[s] a/a.vmdk', '<diskMode>independent_persistent</diskMode>'),
    disk('[s] a/a.vmdk', '<diskMode>independent_nonpersistent</diskMode>'),
    disk('[s] a/r.vmdk', '<compatibilityMode>physicalMode</compatibilityMode>', physical),
  ];
  assert.deepEqual(
    leftOutWarnings(left),
    [
      'its mode is independent-persistent',
      'its mode is independent-nonpersistent',
      'it is a raw device in physical mode',
    ].map((why) => `disk scsi0:1 is not backed up: ${why}, and snapshots leave it out`),
  );
  const taken = [
    disk('[s] a/a.vmdk', '<diskMode>persistent</diskMode>'),
    disk('[s] a/r.vmdk', '<compatibilityMode>virtualMode</compatibilityMode>', physical),
    // What file-level recovery shows to a machine is no disk of its own.
    disk('[rouse-k3f9] w/w.vmdk', '<diskMode>independent_persistent</diskMode>'),
  ];
  assert.deepEqual(leftOutWarnings(taken), []);
});

test('only a base disk that is one flat file is read in part', () => {
  assert.deepEqual(flatFileOf(disk('[s] a/a.vmdk', '')), { file: '[s] a/a-flat.vmdk' });
  const others: readonly (readonly [FrozenDisk, RegExp])[] = [
    [disk('[s] a/a-000001.vmdk', ''), /has older snapshots/],
    [disk('[s] a/b.vmdk', `<parent i:type="${flat}"/>`), /has older snapshots/],
    [disk('[s] a/a.vmdk', '<split>true</split>'), /no single flat file/],
    [disk('[s] a/a.vmdk', '', 'VirtualDiskSeSparseBackingInfo'), /flat file \(SeSparse\)/],
    [
      disk('[s] a/a.vmdk', '', 'VirtualDiskRawDiskMappingVer1BackingInfo'),
      /flat file \(RawDiskMappingVer1\)/,
    ],
    [disk('/vmfs/devices/x', ''), /no single flat file/],
  ];
  for (const [one, because] of others) {
    const judged = flatFileOf(one);
    assert.match('because' in judged ? judged.because : judged.file, because);
  }
});

test('labels come back as they went in; what cannot be read is an error', () => {
  const labels = labelsOf([disk('[s] a/a.vmdk', '')]);
  assert.deepEqual(knownDisks({ ...labels, machine: 'vm-1' }), [
    { name: 'scsi0:1', key: 2001, sizeBytes: 65_536, uuid: '6000c29a', changeId: '52 3c/4' },
  ]);
  for (const text of ['', 'null', '7', '{']) {
    assert.throws(() => knownDisks({ 'vsphere.disk.scsi0:1': text }), /label of disk scsi0:1/);
  }
});
