import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inflateSync } from 'node:zlib';
import { libvirtLimits } from '../../limits.ts';
import { blockStats, liesOn, parseStats, powerOf } from './domain.ts';
import { pictureToPng } from './png.ts';
import { nextBandwidth } from './throttle.ts';
import { remoteHost } from './virsh.ts';

test('a pixmap becomes a PNG with the same pixels', () => {
  const pixels = Buffer.from([255, 0, 0, 0, 255, 0, 0, 0, 255, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const png = pictureToPng(Buffer.concat([Buffer.from('P6\n# QEMU\n3 2\n255\n'), pixels]));
  assert.equal(png.readUInt32BE(16), 3);
  assert.equal(png.readUInt32BE(20), 2);
  const length = png.readUInt32BE(33);
  assert.equal(png.subarray(37, 41).toString(), 'IDAT');
  const rows = inflateSync(png.subarray(41, 41 + length));
  assert.deepEqual([...rows], [0, ...pixels.subarray(0, 9), 0, ...pixels.subarray(9)]);
  assert.equal(pictureToPng(png), png);
  for (const broken of ['P5\n1 1\n255\n0', 'P6\n9 9\n255\nshort', 'P6\n99999 99999\n255\n', '']) {
    assert.throws(() => pictureToPng(Buffer.from(broken)), { code: 'corrupt-data' });
  }
});

test('relocation yields to a slow guest and comes back', () => {
  const { relocateBytesPerSecondMin: least, relocateBytesPerSecondMax: most } = libvirtLimits;
  const start = libvirtLimits.relocateBytesPerSecondStart;
  assert.equal(nextBandwidth(start, 500), start / 2);
  assert.equal(nextBandwidth(least, 500), least);
  assert.equal(nextBandwidth(start, undefined), start * 1.25);
  assert.equal(nextBandwidth(start, libvirtLimits.guestLatencyMsMax * 0.75), start);
  assert.equal(nextBandwidth(most, 1), most);
});

test('a URI tells whether libvirt runs here', () => {
  assert.equal(remoteHost('qemu:///system'), undefined);
  assert.equal(remoteHost('qemu:///session'), undefined);
  assert.equal(remoteHost('qemu+unix:///system?socket=/run/x'), undefined);
  assert.equal(remoteHost('qemu+ssh://root@kvm1:2222/system'), 'kvm1');
  assert.equal(remoteHost('qemu+tls://[fd00::7]:16514/system'), 'fd00::7');
});

test('a disk lies on an export when its whole path does', () => {
  const place = { name: 'd', server: '10.0.0.5', path: '/default/Recover-a-1' };
  assert.equal(liesOn('nfs://10.0.0.5/default/Recover-a-1/web01/vda-flat.vmdk', place), true);
  assert.equal(liesOn('nfs://10.0.0.5/default/Recover-a-10/web01/vda-flat.vmdk', place), false);
  assert.equal(liesOn('nfs://10.0.0.6/default/Recover-a-1/web01/vda-flat.vmdk', place), false);
  const six = { ...place, server: 'fd00::5' };
  assert.equal(liesOn('nfs://[fd00::5]/default/Recover-a-1/web01/x', six), true);
  const mounted = { ...place, mountPath: '/var/lib/rouse/mounts/d' };
  assert.equal(liesOn('/var/lib/rouse/mounts/d/web01/x', mounted), true);
  assert.equal(liesOn('/var/lib/rouse/mounts/d2/web01/x', mounted), false);
});

test('states and statistics are read as virsh prints them', () => {
  const said = `Domain: 'web 01'
  state.state=1
  block.count=2
  block.0.name=vda
  block.0.rd.reqs=10
  block.0.rd.times=2000000
  block.0.wr.reqs=5
  block.0.wr.times=1000000
  block.0.capacity=1048576
  block.1.name=vdb

Domain: 'off'
  state.state=5
`;
  const stats = parseStats(said);
  assert.deepEqual([...stats.keys()], ['web 01', 'off']);
  const blocks = blockStats(stats.get('web 01') ?? new Map<string, string>());
  assert.deepEqual(blocks.get('vda'), {
    capacityBytes: 1_048_576,
    requests: 15,
    nanoseconds: 3_000_000,
  });
  assert.equal(powerOf(stats.get('off')?.get('state.state') ?? ''), 'off');
  assert.deepEqual(
    ['running', 'idle', 'in shutdown', 'paused', 'pmsuspended', 'shut off', 'crashed', '3'].map(
      powerOf,
    ),
    ['on', 'on', 'on', 'paused', 'paused', 'off', 'off', 'paused'],
  );
});
