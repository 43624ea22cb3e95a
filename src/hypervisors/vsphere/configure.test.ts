import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { describeVmx, parseVmx } from '../../formats/vmx.ts';
import type { ConfigureSpec } from '../port.ts';
import { configureVmx, dashed, vmwareUuid } from './configure.ts';

const saved = `.encoding = "UTF-8"
config.version = "8"
displayName = "web01"
# a comment that stays
guestOS = "debian12-64"
nvram = "web01.nvram"
uuid.bios = "56 4d 11 22 33 44 55 66-77 88 99 aa bb cc dd ee"
uuid.location = "56 4d 00 00 00 00 00 00-00 00 00 00 00 00 00 00"
vc.uuid = "50 1d 11 22 33 44 55 66-77 88 99 aa bb cc dd ee"
vm.genid = "1234"
vm.genidX = "5678"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "web01-000002.vmdk"
scsi0:0.ctkEnabled = "TRUE"
scsi0:0.mode = "independent-nonpersistent"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "/vmfs/volumes/other/data.vmdk"
sata0.present = "TRUE"
sata0:0.present = "TRUE"
sata0:0.deviceType = "cdrom-image"
sata0:0.fileName = "/vmfs/volumes/isos/debian.iso"
sata0:0.startConnected = "TRUE"
ethernet0.present = "TRUE"
ethernet0.addressType = "vpx"
ethernet0.generatedAddress = "00:50:56:aa:bb:cc"
ethernet0.dvs.switchId = "50 1e"
ethernet0.dvs.portgroupId = "dvportgroup-1"
ethernet0.dvs.portId = "12"
ethernet1.present = "TRUE"
ethernet1.networkName = "backend"
ctkEnabled = "TRUE"
sched.swap.derivedName = "/vmfs/volumes/x/web01/web01.vswp"
migrate.hostlog = "web01.hlog"
checkpoint.vmState = ""
pciPassthru0.present = "TRUE"
pciPassthru0.id = "00000:003:00.0"
`;

function spec(changes: Partial<ConfigureSpec> = {}): ConfigureSpec {
  return {
    configuration: saved,
    name: 'web01-copy',
    datastore: {
      name: 'rouse-x',
      server: '10.0.0.5',
      path: '/m/R',
      nfsPort: 2049,
      mountPort: 2049,
    },
    folder: 'web01-copy',
    disks: [
      { name: 'scsi0:0', file: 'scsi0:0-flat.vmdk', sizeBytes: 1 << 30 },
      { name: 'scsi0:1', file: 'scsi0:1-flat.vmdk', sizeBytes: 1 << 30 },
    ],
    identity: {
      keep: false,
      uuid: '11111111-2222-4333-8444-555555555555',
      macs: ['52:54:00:ff:02:03', '52:54:00:04:05:06'],
    },
    connectNetworks: false,
    mark: 'recovery1',
    ...changes,
  };
}

test('a copy gets its own name, identity, disks and unplugged network', () => {
  const { text, fileName, changes, extraFiles } = configureVmx(spec());
  const vmx = parseVmx(text, 'the result');
  assert.equal(fileName, 'web01-copy.vmx');
  const is = (key: string, value: string | undefined) => assert.equal(vmx.get(key), value, key);
  is('displayName', 'web01-copy');
  is('guestOS', 'debian12-64');
  is('uuid.bios', '11 11 11 11 22 22 43 33-84 44 55 55 55 55 55 55');
  is('uuid.action', 'keep');
  for (const gone of ['uuid.location', 'vc.uuid', 'vm.genid', 'vm.genidX']) is(gone, undefined);
  is('scsi0:0.fileName', 'scsi0:0.vmdk');
  is('scsi0:1.fileName', 'scsi0:1.vmdk');
  is('scsi0:0.mode', undefined);
  is('scsi0.virtualDev', 'pvscsi');
  for (const gone of ['ctkEnabled', 'scsi0:0.ctkEnabled', 'sched.swap.derivedName']) {
    is(gone, undefined);
  }
  for (const gone of ['migrate.hostlog', 'checkpoint.vmState', 'pciPassthru0.present']) {
    is(gone, undefined);
  }
  is('sata0:0.fileName', 'emptyBackingString');
  is('sata0:0.startConnected', 'FALSE');
  is('ethernet0.addressType', 'static');
  is('ethernet0.address', '00:50:56:3f:02:03');
  is('ethernet0.startConnected', 'FALSE');
  is('ethernet0.dvs.portgroupId', undefined);
  is('ethernet0.networkName', 'VM Network');
  is('ethernet1.networkName', 'backend');
  is('rouse.recovery', 'recovery1');
  is('rouse.datastore', 'rouse-x');
  is('rouse.uuid', '11111111-2222-4333-8444-555555555555');
  assert.ok(text.includes('# a comment that stays\n'));
  assert.deepEqual(extraFiles, [{ name: 'web01-copy.nvram' }, { name: 'vmware.log' }]);
  assert.ok(
    changes.some((change) => change.includes('pcipassthru0')),
    changes.join('; '),
  );
});

test('what is kept is kept: UUID, addresses, networks and firmware variables', () => {
  const identity = { ...spec().identity, keep: true };
  const kept = configureVmx(spec({ identity, connectNetworks: true, nvram: 'nvram' }));
  const vmx = parseVmx(kept.text, 'the result');
  assert.equal(vmx.get('uuid.bios'), '56 4d 11 22 33 44 55 66-77 88 99 aa bb cc dd ee');
  assert.equal(vmx.get('rouse.uuid'), '564d1122-3344-5566-7788-99aabbccddee');
  assert.equal(vmx.get('vc.uuid'), '50 1d 11 22 33 44 55 66-77 88 99 aa bb cc dd ee');
  assert.equal(vmx.get('uuid.action'), 'keep');
  assert.equal(vmx.get('ethernet0.generatedAddress'), '00:50:56:aa:bb:cc');
  assert.equal(vmx.get('ethernet0.dvs.portgroupId'), 'dvportgroup-1');
  assert.equal(vmx.get('ethernet0.startConnected'), 'TRUE');
  assert.equal(vmx.get('nvram'), 'web01-copy.nvram');
  assert.deepEqual(kept.extraFiles?.[0], { name: 'web01-copy.nvram', copyOf: 'nvram' });
});

test('disks of other names take the slots in order; one that was not saved is left out', () => {
  const one = [{ name: 'vda', file: 'vda-flat.vmdk', sizeBytes: 1 }];
  const { text, changes } = configureVmx(spec({ disks: one }));
  const { disks } = describeVmx(parseVmx(text, 'the result'), 'the result');
  assert.deepEqual(disks, [{ slot: 'scsi0:0', fileName: 'vda.vmdk' }]);
  assert.ok(changes.some((change) => change.startsWith('disk scsi0:1 is left out')));
  const many = Array.from({ length: 20 }, (_, index) => ({
    name: `d${index}`,
    file: `d${index}-flat.vmdk`,
    sizeBytes: 1,
  }));
  const crowded = describeVmx(parseVmx(configureVmx(spec({ disks: many })).text, 'x'), 'x').disks;
  assert.equal(crowded.length, 20);
  assert.ok(!crowded.some(({ slot }) => slot === 'scsi0:7'), "7 is the controller's own");
});

test('a machine is made of libvirt XML, of nothing, and of what is no configuration', () => {
  const xml = `<domain type='kvm'><name>kvm1</name><uuid>0a0b0c0d-1111-4222-8333-444444444444</uuid>
    <memory unit='GiB'>3</memory><vcpu>4</vcpu><os firmware='efi'><type>hvm</type></os>
    <devices><interface type='network'><mac address='52:54:00:01:02:03'/>
    <source network='lan'/></interface></devices></domain>`;
  const disks = [{ name: 'vda', file: 'vda-flat.vmdk', sizeBytes: 1 }];
  const fromXml = parseVmx(configureVmx(spec({ configuration: xml, disks })).text, 'x');
  assert.equal(fromXml.get('memSize'), '3072');
  assert.equal(fromXml.get('numvcpus'), '4');
  assert.equal(fromXml.get('firmware'), 'efi');
  assert.equal(fromXml.get('ethernet0.networkName'), 'lan');
  assert.equal(fromXml.get('sata0:0.fileName'), 'vda.vmdk');
  for (const configuration of [undefined, 'no configuration at all', '<broken', '{"a":1}']) {
    const made = parseVmx(configureVmx(spec({ configuration, disks })).text, 'x');
    assert.equal(made.get('displayName'), 'web01-copy');
    assert.equal(made.get('sata0:0.fileName'), 'vda.vmdk');
  }
});

test('a full restore is refused: disks are not written straight to a datastore', () => {
  const local = { path: '/x', format: 'raw' } as const;
  const disks = [{ name: 'vda', file: 'vda', sizeBytes: 1, local }];
  assert.throws(() => configureVmx(spec({ disks })), { code: 'hypervisor-unsupported' });
});

const word = fc.stringMatching(/^[a-z][a-z0-9.]{0,12}$/);
const lineOf = fc.tuple(word, fc.string({ unit: 'grapheme', maxLength: 20 }));

test('whatever is saved: unknown keys stay, nothing is asked, and it is the same twice', () => {
  const own =
    /^(uuid\.|vc\.uuid|vm\.genid|displayname$|nvram$|rouse\.|checkpoint\.|sched\.|migrate\.)/;
  const devices = /^(scsi|sata|ide|nvme|ethernet|serial|parallel|floppy|pcipassthru|vgpu|usb)\d?/;
  fc.assert(
    fc.property(fc.array(lineOf, { maxLength: 12 }), fc.boolean(), (lines, keep) => {
      const strange = lines.map(([key, value]) => [key, value.replace(/["|\r\n\0]/g, '')] as const);
      const kept = strange.filter(([key, value]) => {
        const isOther = !own.test(key) && !devices.test(key) && !value.includes('.lck');
        return isOther && !/^(workingdir|filesearchpath|vmxstats|snapshot|ctkenabled)/.test(key);
      });
      const configuration = saved + strange.map(([key, value]) => `${key} = "${value}"\n`).join('');
      const wanted = spec({ configuration, identity: { ...spec().identity, keep } });
      const once = configureVmx(wanted);
      assert.deepEqual(configureVmx(wanted), once);
      const vmx = parseVmx(once.text, 'the result');
      const before = parseVmx(configuration, 'what was saved');
      for (const [key] of kept) {
        if (!key.includes('changetrackpath')) assert.equal(vmx.get(key), before.get(key), key);
      }
      assert.equal(vmx.get('uuid.action'), 'keep');
      assert.equal(vmx.get('uuid.location'), undefined);
      assert.equal(vmx.get('rouse.uuid'), dashed(vmx.get('uuid.bios') ?? ''));
      // Configured again from its own result, only what belongs to the recovery changes.
      const again = configureVmx({ ...wanted, configuration: once.text });
      assert.equal(parseVmx(again.text, 'again').get('scsi0:1.fileName'), 'scsi0:1.vmdk');
    }),
    { numRuns: 300 },
  );
});

test('UUIDs are spelt as a .vmx has them, and back', () => {
  fc.assert(
    fc.property(fc.uuid(), (uuid) => assert.equal(dashed(vmwareUuid(uuid)), uuid)),
    { numRuns: 100 },
  );
  assert.equal(dashed('not one'), undefined);
});
