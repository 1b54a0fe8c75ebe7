// vhd-lib.cjs DIRECTORY BINARY     checks VHDs against npm's vhd-lib, which is installed in DIRECTORY: see README.md
'use strict'

const assert = require('assert')
const { execFileSync } = require('child_process')
const fs = require('fs')
const os = require('os')
const path = require('path')

const [directory, binary] = process.argv.slice(2).map(name => path.resolve(name))
const vhdLib = require(path.join(directory, 'node_modules', 'vhd-lib'))
const Vhd = vhdLib.default
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'undercroft-vhd-lib-'))
const at = name => path.join(work, name)

// What vhd-lib wants of a file system.
const handler = {
  openFile: async (file, flags) => ({ fd: fs.openSync(file, flags) }),
  closeFile: async file => fs.closeSync(file.fd),
  getSize: async file => (file.fd === undefined ? fs.statSync(file) : fs.fstatSync(file.fd)).size,
  read: async (file, buffer, position) => {
    const fd = file.fd === undefined ? fs.openSync(file, 'r') : file.fd
    const bytesRead = fs.readSync(fd, buffer, 0, buffer.length, position)
    if (file.fd === undefined) fs.closeSync(fd)
    return { bytesRead, buffer }
  },
}

const undercroft = (...args) => execFileSync(binary, ['--repo', at('repo'), ...args], { cwd: work })

async function bytesOf(stream) {
  const chunks = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}

function image(size) {
  const bytes = Buffer.alloc(size)
  for (let offset = 0; offset < size; offset += 3 << 20) {
    bytes.fill((offset >> 20) + 1, offset, Math.min(size, offset + 700000))
  }
  return bytes
}

async function main() {
  undercroft('init')
  const old = image((21 << 20) + 512)
  fs.writeFileSync(at('disk.raw'), old)
  undercroft('backup', '--vm', 'old', '--disk', 'root=disk.raw')
  const now = Buffer.from(old)
  now.fill(0, 0, 8192)
  now.fill(0x77, (10 << 20) - 4096, (10 << 20) + 4096)
  fs.writeFileSync(at('disk.raw'), now)
  undercroft('backup', '--vm', 'now', '--disk', 'root=disk.raw')
  undercroft('restore', 'old@latest', '--format', 'vhd', '--to', 'old.vhd')
  undercroft('restore', 'now@latest', '--vhd-since', 'old@latest', '--to', 'now.vhd')

  const vhd = new Vhd(handler, at('now.vhd'))
  await vhd.readHeaderAndFooter()
  const parent = new Vhd(handler, at('old.vhd'))
  await parent.readHeaderAndFooter()
  assert.deepStrictEqual(vhd.header.parentUuid, parent.footer.uuid)
  console.log('ok: header and footer are read, and the child names its parent')

  const content = await bytesOf(vhdLib.createContentStream(handler, at('old.vhd')))
  assert(content.equals(old))
  console.log('ok: a restored VHD holds the disk')

  const merged = await vhdLib.createSyntheticStream(handler, [at('now.vhd'), at('old.vhd')])
  fs.writeFileSync(at('merged.vhd'), await bytesOf(merged))
  undercroft('backup', '--vm', 'merged', '--disk', 'root=vhd:merged.vhd')
  undercroft('restore', 'merged@latest', '--to', 'merged.raw')
  assert(fs.readFileSync(at('merged.raw')).equals(now))
  console.log('ok: what vhd-lib makes of a VHD and its child is backed up as the newer disk')
  fs.rmSync(work, { recursive: true })
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
