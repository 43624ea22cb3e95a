import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { isRouseError } from '../errors.ts';
import { flatDescriptor, looksLikeDescriptor, parseDescriptor } from './vmdk-descriptor.ts';

const spec = {
  sizeBytes: 8 * 2 ** 30,
  flatFileName: 'vda-flat.vmdk',
  adapter: 'lsilogic',
  uuid: '6000c29d-0011-2233-4455-66778899aabb',
  cid: 0x1234abcd,
} as const;

test('a flat descriptor names its one extent, its ids and its geometry', () => {
  const text = flatDescriptor(spec);
  assert.match(text, /^# Disk DescriptorFile\nversion=1\n/);
  assert.match(text, /\nRW 16777216 VMFS "vda-flat\.vmdk"\n/);
  assert.match(text, /\nCID=1234abcd\nparentCID=ffffffff\ncreateType="vmfs"\n/);
  assert.match(text, /ddb\.uuid = "60 00 c2 9d 00 11 22 33-44 55 66 77 88 99 aa bb"/);
  // 16,777,216 sectors / (255 heads x 63 sectors) = 1,044 cylinders.
  assert.match(text, /ddb\.geometry\.cylinders = "1044"/);
  assert.ok(looksLikeDescriptor(Buffer.from(text)));
});

test('a size that is no multiple of a sector is rounded up to one', () => {
  assert.match(flatDescriptor({ ...spec, sizeBytes: 513 }), /\nRW 2 VMFS /);
});

test('what is written can be read back, whatever the numbers', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 2 ** 46 }),
      fc.integer({ min: 0, max: 0xffffffff }),
      fc.uuid(),
      (sizeBytes, cid, uuid) => {
        const read = parseDescriptor(flatDescriptor({ ...spec, sizeBytes, cid, uuid }), 'x.vmdk');
        assert.equal(read.extents.length, 1);
        assert.equal(read.extents[0]?.sectors, Math.ceil(sizeBytes / 512));
        assert.equal(read.extents[0]?.fileName, 'vda-flat.vmdk');
        assert.notEqual(read.contentId, 'ffffffff');
        assert.equal(read.parentContentId, 'ffffffff');
        assert.equal(
          read.database.get('adapterType') ?? read.database.get('ddb.adapterType'),
          'lsilogic',
        );
      },
    ),
  );
});

test('names that would break the text, and sizes of nothing, are refused', () => {
  for (const flatFileName of ['', 'a"b', 'a/b', 'a\nb']) {
    assert.throws(
      () => flatDescriptor({ ...spec, flatFileName }),
      (error) => isRouseError(error, 'bad-request'),
    );
  }
  assert.throws(
    () => flatDescriptor({ ...spec, sizeBytes: 0 }),
    (error) => isRouseError(error, 'bad-request'),
  );
  assert.throws(
    () => flatDescriptor({ ...spec, uuid: 'nonsense' }),
    (error) => isRouseError(error, 'bad-request'),
  );
});

test('extent lines of every kind are understood', () => {
  const read = parseDescriptor(
    [
      'version=1',
      'parentFileNameHint="base.vmdk"',
      'RW 4192256 SPARSE "disk s001.vmdk"',
      'RDONLY 63 FLAT "disk-flat.vmdk" 128',
      'RW 10 ZERO ',
      'ddb.adapterType = "ide"',
    ].join('\r\n'),
    'x.vmdk',
  );
  assert.equal(read.parentFileName, 'base.vmdk');
  assert.deepEqual(
    read.extents.map(({ type, fileName, offsetSectors }) => [type, fileName, offsetSectors]),
    [
      ['SPARSE', 'disk s001.vmdk', 0],
      ['FLAT', 'disk-flat.vmdk', 128],
      ['ZERO', undefined, 0],
    ],
  );
});

test('a hostile extent line is one typed error', () => {
  for (const line of ['RW abc FLAT "x"', 'RW 9999999999999999 FLAT "x"']) {
    assert.throws(
      () => parseDescriptor(`version=1\n${line} \n`, 'x.vmdk'),
      (error) => isRouseError(error, 'corrupt-data'),
    );
  }
});
