import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError } from '../../errors.ts';
import { systemClock } from '../../lib/clock.ts';
import { fakeVim, fault } from '../../testing/fake-vim.ts';
import type { FakeVim } from '../../testing/fake-vim.ts';
import type { BackupDiskSource, ChangedDisk, FolderAccess } from '../port.ts';
import { VsphereReader } from './reader.ts';

const MiB = 1 << 20;
const sizeBytes = 8 * MiB;
const access: FolderAccess = {
  ...{ via: 'folder', machine: 'vm-1', snapshot: 'snapshot-1', key: 2000, changeId: 'x/1' },
  path: '/folder/web01/web01-flat.vmdk?dcPath=dc1&dsName=s',
};
const source: BackupDiskSource = { name: 'scsi0:0', sizeBytes, source: '', access };

const page = (start: number, length: number, areas: readonly (readonly [number, number])[]) =>
  `<returnval><startOffset>${start}</startOffset><length>${length}</length>${areas
    .map(
      ([at, bytes]) => `<changedArea><start>${at}</start><length>${bytes}</length></changedArea>`,
    )
    .join('')}</returnval>`;

async function withDisk(vim: FakeVim, work: (disk: ChangedDisk) => Promise<void>): Promise<void> {
  const trust = { fingerprint: vim.fingerprint };
  const reader = new VsphereReader({ url: vim.url, trust, session: { ticket: 't' } }, systemClock);
  try {
    await work(reader.folderDisk(source, access, new AbortController().signal));
  } finally {
    await reader.close();
    await vim.close();
  }
}

test('answers are asked for until the range is covered; what lies close together is one', async () => {
  const vim = await fakeVim({
    QueryChangedDiskAreas: [
      page(0, 3 * MiB, [
        [65_536, 65_536],
        [196_608, 65_536],
        [2 * MiB, 65_536],
      ]),
      page(3 * MiB, sizeBytes - 3 * MiB, [[7 * MiB, MiB]]),
    ],
  });
  await withDisk(vim, async (disk) => {
    const all = await disk.changes(0, sizeBytes);
    assert.deepEqual(
      all.map(({ offset, length }) => [offset, length]),
      [
        [65_536, 196_608],
        [2 * MiB, 65_536],
        [7 * MiB, MiB],
      ],
    );
    const asked = vim.calls.filter(({ name }) => name === 'QueryChangedDiskAreas');
    assert.deepEqual(
      asked.map(({ body }) => /<startOffset>(\d+)</.exec(body)?.[1]),
      ['0', String(3 * MiB)],
    );
    assert.ok(asked.every(({ body }) => body.includes('<changeId>x/1</changeId>')));
  });
});

test('an answer that cannot be true is no answer', async () => {
  const wrong: readonly (readonly [string, RegExp])[] = [
    [page(512, MiB, []), /asked from byte 0 on, it tells of 512/],
    [page(0, 0, []), /it tells of 0 to 0/],
    ['<returnval/>', /it tells of NaN/],
    [page(0, 16 * MiB, [[sizeBytes - 512, 1024]]), /up to \d+ of a disk of/],
    [page(0, MiB, [[2 * MiB, 512]]), /out of place/],
    [
      page(0, sizeBytes, [
        [0, MiB],
        [512, MiB],
      ]),
      /out of place/,
    ],
    [fault('FileFault', 'the map is gone'), /the map is gone/],
    [fault('NoPermission'), /NoPermission/],
  ];
  for (const [answer, because] of wrong) {
    const vim = await fakeVim({ QueryChangedDiskAreas: [answer] });
    await withDisk(vim, async (disk) => {
      await assert.rejects(disk.changes(0, sizeBytes), (error: unknown) => {
        assert.ok(isRouseError(error, 'corrupt-data'), String(error));
        assert.match(error.message, /what changed on disk scsi0:0 cannot be told/);
        assert.match(error.message, because);
        return true;
      });
    });
  }
});

test('of ranges only those are taken that are what was asked for', async () => {
  const range = 'bytes 4096-8191/8388608';
  const answers: readonly (readonly [number, string | undefined, number, string | undefined])[] = [
    [206, range, 4096, undefined],
    [206, 'bytes 4096-8191/8388609', 4096, 'corrupt-data'],
    [206, 'bytes 0-4095/8388608', 4096, 'corrupt-data'],
    [206, range, 4095, 'corrupt-data'],
    [206, undefined, 4096, 'corrupt-data'],
    [200, undefined, 10_000, 'corrupt-data'],
    [403, undefined, 0, 'forbidden'],
    [404, undefined, 0, 'not-found'],
    [500, undefined, 0, 'hypervisor-error'],
  ];
  for (const [status, said, bytes, code] of answers) {
    const vim = await fakeVim({}, (call, response) => {
      assert.equal(call.headers.range, 'bytes=4096-8191');
      assert.match(call.headers.cookie ?? '', /CloneSession/);
      response.writeHead(status, said === undefined ? {} : { 'Content-Range': said });
      response.end(Buffer.alloc(bytes, 7));
    });
    await withDisk(vim, async (disk) => {
      const target = Buffer.alloc(4096);
      if (code === undefined) {
        await disk.read(target, 4096);
        assert.ok(target.every((byte) => byte === 7));
      } else {
        await assert.rejects(disk.read(target, 4096), (error: unknown) => {
          assert.equal((error as { code?: string }).code, code, `HTTP ${status} ${said}`);
          return true;
        });
        assert.ok(
          target.every((byte) => byte === 0),
          'not a byte of it',
        );
      }
    });
  }
});
