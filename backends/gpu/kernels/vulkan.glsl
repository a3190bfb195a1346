/* The dialect in GLSL for Vulkan 1.2. GROUP and the constants of a kernel are specialisation constants. */
#ifndef BK_NO_16BIT
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_int16 : enable
#endif
#ifdef BK_BDA
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
layout(buffer_reference, std430, buffer_reference_align = 4) buffer BkFloats { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer BkInts { int v[]; };
#ifndef BK_NO_16BIT
layout(buffer_reference, std430, buffer_reference_align = 2) buffer BkHalves { uint16_t v[]; };
#endif
#endif
#define FN
#define to_f(x) float(x)
#define to_i(x) int(x)
#define to_u(x) uint(x)
#define bits_of(x) floatBitsToUint(x)
#define float_of(x) uintBitsToFloat(x)
#define LANE int(gl_LocalInvocationID.x)
#define BLOCK int(gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x)
#define SYNC() barrier()
#define SYNC_ALL() { memoryBarrierBuffer(); barrier(); }
#define abs_f(x) abs(x)
uint mul_hi_u(uint a, uint b) { uint high, low; umulExtended(a, b, high, low); return high; }
